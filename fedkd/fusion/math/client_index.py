"""Memory of all clients under partial participation."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Roster(NamedTuple):
    """All clients so far `[K]`, ascending, with positions of earlier and present `[N]` ones."""

    clients: np.ndarray
    known: np.ndarray
    present: np.ndarray


def enrol(memory: Mapping[str, np.ndarray], clients: Sequence[int]) -> Roster:
    """Add this round's clients to the ``clients`` `[K]` of a memory, which is empty at first."""
    before = memory.get("clients", np.empty(0, dtype=np.int64))
    everyone = np.union1d(before, np.array(clients, dtype=np.int64))
    return Roster(everyone, np.searchsorted(everyone, before), np.searchsorted(everyone, clients))


def enlarge(array: np.ndarray, shape: tuple[int, ...], fill: float = 0) -> np.ndarray:
    """Return a copy enlarged to at least this shape, filled with `fill`."""
    shape = tuple(max(pair) for pair in zip(array.shape, shape, strict=True))
    copy = np.full(shape, fill, dtype=array.dtype)
    copy[tuple(slice(length) for length in array.shape)] = array
    return copy
