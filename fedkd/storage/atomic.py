"""Atomic writes: a file has its old content or all of the new."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text_atomically(path: Path | str, text: str) -> None:
    """Replace the file at `path` by `text` (UTF-8), durably; see `write_bytes_atomically`."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path | str, content: bytes) -> None:
    """Replace the file at `path` by `content`, durably and atomically."""
    with atomic_replacement(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def atomic_replacement(path: Path | str) -> Iterator[Path]:
    """Yield a temporary file that replaces the one at `path` after the block.

    A symbolic link at `path` is replaced, not its target.
    """
    path = Path(path)
    # A rename is atomic only within a file system: use the same folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def break_hard_link(path: Path) -> None:
    """Give a file its own inode, so that in-place changes spare hard-linked copies."""
    if path.exists() and path.stat().st_nlink > 1:
        with atomic_replacement(path) as temporary:
            shutil.copy2(path, temporary)


def write_json_atomically(path: Path | str, value: Any) -> None:
    """Replace the file at `path` by `value` as indented JSON, durably; NaN raises a ValueError."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Make renames and new files in `folder` durable, if the system can (not on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
