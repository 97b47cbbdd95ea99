"""States of idle clients, in an anonymous file."""

import tempfile
from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from safetensors.numpy import load, save


@dataclass(frozen=True)
class Place:
    """Place of a client's state in the file, and the order of its arrays."""

    start: int
    stop: int
    names: tuple[str, ...]


class IdleStates:
    """Clients' states in an anonymous file in `folder`, which is deleted with the process."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder if folder is not None and folder.is_dir() else None
        self._file: IO[bytes] | None = None
        self._places: dict[int, Place] = {}
        self._free: list[tuple[int, int]] = []  # starts and stops, ascending, never adjacent
        self._end = 0

    def __contains__(self, client: int) -> bool:
        return client in self._places

    @property
    def size(self) -> int:
        return self._end

    def put(self, client: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a client's state in place of an earlier one; after an `OSError` none is kept."""
        data = save({name: np.asarray(values, order="C") for name, values in arrays.items()})
        self.drop(client)
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115, open as long as this lives
        start = self._take(len(data))
        stop = start + len(data)
        try:
            self._file.seek(start)
            self._file.write(data)
            self._file.flush()
        except BaseException:
            self._give(start, stop)
            raise
        self._places[client] = Place(start, stop, tuple(arrays))

    def get(self, client: int) -> dict[str, np.ndarray]:
        """Return a client's state; raise `KeyError` if none is kept."""
        place = self._places[client]
        assert self._file is not None
        self._file.seek(place.start)
        arrays = load(self._file.read(place.stop - place.start))
        return {name: arrays[name] for name in place.names}

    def drop(self, client: int) -> None:
        place = self._places.pop(client, None)
        if place is not None:
            self._give(place.start, place.stop)

    def clear(self) -> None:
        """Forget all states, and free the disk."""
        if self._file is not None:
            self._file.close()
        self._file, self._end = None, 0
        self._places.clear()
        self._free.clear()

    def _take(self, size: int) -> int:
        for number, (start, stop) in enumerate(self._free):
            if stop - start >= size:
                self._free[number : number + 1] = [(start + size, stop)] if stop - start > size else []
                return start
        self._end += size
        return self._end - size

    def _give(self, start: int, stop: int) -> None:
        insort(self._free, (start, stop))
        joined: list[tuple[int, int]] = []
        for one in self._free:
            if joined and joined[-1][1] == one[0]:
                joined[-1] = joined[-1][0], one[1]
            else:
                joined.append(one)
        if joined and joined[-1][1] == self._end:
            self._end = joined.pop()[0]
        self._free = joined
