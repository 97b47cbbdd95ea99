"""Tar archives, read in memory without unpacking, so that no member can escape a folder."""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedkd.data.memory_budget import check_memory_budget
from fedkd.errors import UserError

OPENERS: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"\xfd7zXZ\0", lzma.open),
    (b"BZh", bz2.open),
)
BLOCK_BYTES = 512


def tar_members(path: Path, wanted: Callable[[str], bool], *, key: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the `wanted` plain files of a tar archive (plain, gzip, bzip2 or xz)."""
    size = 0
    try:
        with path.open("rb") as start:
            magic = start.read(6)
        opener = next((opener for mark, opener in OPENERS if magic.startswith(mark)), open)
        with opener(path, "rb") as stream:
            tail = _Tail(stream)
            # tarfile's own decompression treats a truncated stream as the end; Python's file objects raise.
            with tarfile.open(fileobj=tail, mode="r|") as archive:  # type: ignore[call-overload]
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() and wanted(member.name) else None
                    if file is not None:
                        size += member.size  # as its header claims, before anything is read
                        check_memory_budget(size, f"the content of {path} takes", key)
                        yield member.name, file.read()
            if tail.last.strip(b"\0"):
                raise EOFError("it ends without an end mark")
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"cannot read {path} as a complete tar archive: {error}", key=key) from error


class _Tail:
    """A readable stream that remembers the last block: an archive ends with zeros."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.last = b""

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes."""
        content: bytes = self.stream.read(size)
        self.last = content[-BLOCK_BYTES:] or self.last
        return content
