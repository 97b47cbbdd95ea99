"""Files of arrays: written once, told by their digests, and never a pickle."""

from __future__ import annotations

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
from fedkd.tracking.recorder import file_digest

Arrays = Mapping[str, np.ndarray]


class Damaged(Exception):
    """Something is not what was written; says what of it."""


@dataclass(frozen=True)
class SavedFile:
    """A file of arrays, and the SHA-256 of what was written."""

    path: Path
    digest: str

    def read(self) -> Arrays:
        """Return its arrays in the order of their names; raise `Damaged` if they were changed."""
        with self._told_of():
            data = self.path.read_bytes()
            if sha256(data) == self.digest:
                # A file keeps no order, and its reader's is another one every time.
                return dict(sorted(load(data).items()))
        raise Damaged(f"{self.path.name} is not what was written")

    def check(self) -> None:
        """Raise `Damaged` if it is not what was written; nothing of it stays in memory."""
        with self._told_of():
            if file_digest(self.path) == self.digest:
                return
        raise Damaged(f"{self.path.name} is not what was written")

    @contextmanager
    def _told_of(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise Damaged(f"{self.path.name} is missing") from None
        except (OSError, SafetensorError):
            raise Damaged(f"{self.path.name} cannot be read") from None


class SavedStates(Mapping[int, Arrays]):
    """Clients' states, each read when it is asked for."""

    def __init__(self, files: Mapping[int, SavedFile]) -> None:
        self._files = files

    def __getitem__(self, client: int) -> Arrays:
        """Return a client's state.

        Raises:
            UserError: Somebody has changed it since it was looked through.
        """
        file = self._files[client]
        try:
            return file.read()
        except Damaged as damage:
            raise UserError(str(damage), file=str(file.path.parent)) from damage

    def __iter__(self) -> Iterator[int]:
        """Yield the clients that have a state."""
        return iter(self._files)

    def __len__(self) -> int:
        """Return how many have one."""
        return len(self._files)


def write_arrays(path: Path, arrays: Arrays, *, sync: bool = True) -> SavedFile:
    """Write a file of arrays, and wait until it is on disk unless told otherwise (see `sync_file`)."""
    data = save({name: np.asarray(values, order="C") for name, values in arrays.items()})
    write_bytes(path, data, sync=sync)
    return SavedFile(path, sha256(data))


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a new file in the place of what is there, and wait until it is on disk unless told otherwise."""
    path.unlink(missing_ok=True)  # not written through: it may be a hard link
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
