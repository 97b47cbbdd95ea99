"""How much memory may be asked for: what is compressed, or a number in a scenario, can claim anything."""

from __future__ import annotations

import os
import zipfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from fedkd.errors import UserError

SHARE = 0.5
"""Of the machine's memory that one data set may take: data are held once more when they are dealt out."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container's limit is told, of either kind of control groups."""


@cache  # it is asked for every image of a data set
def machine_memory() -> int:
    """Return the bytes of memory that there are: of the machine, or of the container if that is less."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in LIMITS:
        with suppress(OSError, ValueError):  # not there, or "max"
            memory = min(memory, int(Path(limit).read_text()))
    return memory


def memory_budget() -> int:
    """Return the bytes that one file's contents, or one data set, may take."""
    return int(SHARE * machine_memory())


def check_fits(size: int, what: str, key: str) -> None:
    """Refuse what would not fit into the share of the memory that data may take.

    Args:
        size: Bytes it would take.
        what: What takes them, with the verb: ``a.npz unpacks to``.
        key: Scenario key to blame.

    Raises:
        UserError: It does not fit.
    """
    budget = memory_budget()
    if size > budget:
        raise UserError(
            f"{what} {size / 1e9:,.1f} GB; half of this machine's memory is {budget / 1e9:,.1f} GB", key=key
        )


def check_unpacked(path: Path, key: str) -> None:
    """Refuse a zip archive whose members would not fit into memory, before any is unpacked.

    Raises:
        UserError: What they would take.
        zipfile.BadZipFile: It is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        check_fits(sum(member.file_size for member in archive.infolist()), f"{path} unpacks to", key)
