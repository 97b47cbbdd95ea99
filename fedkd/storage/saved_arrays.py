"""Files of arrays with digests, without pickle."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedkd.errors import UserError
from fedkd.storage.digests import file_digest

Arrays = Mapping[str, np.ndarray]


class DamagedFile(Exception):
    """A file differs from the one that was written."""


@dataclass(frozen=True)
class SavedFile:
    """A file of arrays, and the SHA-256 of its content."""

    path: Path
    digest: str

    def read(self) -> Arrays:
        """Return the arrays, sorted by name; raise `DamagedFile` if the file was changed."""
        with self._read_errors():
            data = self.path.read_bytes()
            self._compare(sha256(data))
            # The order of safetensors varies.
            return dict(sorted(load(data).items()))

    def check(self) -> None:
        """Raise `DamagedFile` if the file was changed, without loading it."""
        with self._read_errors():
            self._compare(file_digest(self.path))

    def _compare(self, digest: str) -> None:
        if digest != self.digest:
            raise DamagedFile(f"{self.path.name} was changed after it was written")

    @contextmanager
    def _read_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise DamagedFile(f"{self.path.name} is missing") from None
        except (OSError, SafetensorError):
            raise DamagedFile(f"{self.path.name} cannot be read") from None


class SavedStates(Mapping[int, Arrays]):
    """Clients' states by client, read on demand."""

    def __init__(self, files: Mapping[int, SavedFile]) -> None:
        self._files = files

    def __getitem__(self, client: int) -> Arrays:
        """Return a client's state; raise `UserError` if it changed since the check."""
        file = self._files[client]
        try:
            return file.read()
        except DamagedFile as damage:
            raise UserError(str(damage), file=str(file.path.parent)) from damage

    def __iter__(self) -> Iterator[int]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def write_arrays(path: Path, arrays: Arrays, *, sync: bool = True) -> SavedFile:
    """Write a file of arrays; with `sync`, wait until it is on disk."""
    data = save({name: np.asarray(values, order="C") for name, values in arrays.items()})
    write_bytes(path, data, sync=sync)
    return SavedFile(path, sha256(data))


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace a file by a new one; with `sync`, wait until it is on disk."""
    path.unlink(missing_ok=True)  # a hard link must keep its content
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Wait until a file is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sha256(data: bytes) -> str:
    """Return the SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
