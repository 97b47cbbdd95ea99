"""Downloads with a checksum; incomplete files are never kept."""

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedkd.data.request import ProgressCallback
from fedkd.errors import UserError

TIMEOUT_SECONDS = 8.0
"""Longest silence of a server; short, so that users without a network soon read the advice."""
CHUNK_BYTES = 1 << 18


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def download(urls: Sequence[str], path: Path, *, md5: str, hint: str, progress: ProgressCallback) -> Path:
    """Download `path` from the first of `urls` with the right checksum; errors end with `hint`."""
    if path.is_file():
        with path.open("rb") as file:  # the checksum detects damage; it does not prove the origin
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        if found.hexdigest() == md5:
            return path
    reasons: list[str] = []
    for url in urls:
        try:
            _fetch(url, path, md5, progress)
            return path
        except OSError as error:  # URLError and timeouts are OSErrors too
            reasons.append(str(error))
    told = f"cannot download {path.name} ({'; '.join(dict.fromkeys(reasons))}); {hint}"
    raise UserError(told, key="data.root")


def _fetch(url: str, path: Path, md5: str, progress: ProgressCallback) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, written_whole(path) as file:  # noqa: S310
        total = int(answer.headers.get("Content-Length") or 0)
        done, tenths = 0, 0
        progress(f"downloading {path.name} from {url}")
        while chunk := answer.read(CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if total and done * 10 // total > tenths:
                tenths = done * 10 // total
                bar = ("#" * tenths).ljust(10, ".")
                progress(f"{path.name} [{bar}] {done / 1e6:.1f} of {total / 1e6:.1f} MB")
        if digest.hexdigest() != md5:
            raise OSError(f"{url} has checksum {digest.hexdigest()}, must have {md5}")
