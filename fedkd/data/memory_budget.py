"""Limits of memory: compressed files and numbers in scenarios can declare any size."""

import os
import zipfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from fedkd.errors import refuse_if

SHARE = 0.5  # share of memory for one data set: partitioning copies the data once
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""A container's limit, for either version of control groups."""


@cache  # called for every image of a data set
def machine_memory() -> int:
    """Return the bytes of memory of the machine, or of the container if less."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in LIMITS:
        with suppress(OSError, ValueError):  # not there, or "max"
            memory = min(memory, int(Path(limit).read_text()))
    return memory


def memory_budget() -> int:
    """Return the bytes that one file's contents or one data set may take."""
    return int(SHARE * machine_memory())


def check_memory_budget(size: int, what: str, key: str) -> None:
    """Raise a `UserError` if `size` bytes exceed the budget; it starts with `what`: ``a.npz unpacks to``."""
    budget = memory_budget()
    told = f"{what} {size / 1e9:,.1f} GB; half of this machine's memory is {budget / 1e9:,.1f} GB"
    refuse_if(size > budget, told, key)


def check_unpacked(path: Path, key: str) -> None:
    """Refuse a zip archive that does not fit into memory, before it is unpacked."""
    with zipfile.ZipFile(path) as archive:
        check_memory_budget(sum(member.file_size for member in archive.infolist()), f"{path} unpacks to", key)
