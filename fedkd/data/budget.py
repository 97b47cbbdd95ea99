"""How much memory data may take: what is compressed can claim to be anything."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from fedkd.errors import UserError

SHARE = 0.5
"""Of the machine's memory: data are held once more when they are dealt out."""


def memory_budget() -> int:
    """Return the bytes that one file's contents may take."""
    return int(SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def check_unpacked(path: Path, key: str) -> None:
    """Refuse a zip archive whose members would not fit into memory, before any is unpacked.

    Raises:
        UserError: What they would take.
        zipfile.BadZipFile: It is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > memory_budget():
        raise UserError(
            f"{path} unpacks to {size / 1e9:,.1f} GB; half of this machine's memory is"
            f" {memory_budget() / 1e9:,.1f} GB",
            key=key,
        )
