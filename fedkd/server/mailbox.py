"""Fused guidance that waits to be sent."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fedkd.fusion import Arrays
from fedkd.storage import add_prefix, group_by_number, strip_prefix


@dataclass(frozen=True, eq=False)
class GuidanceParcel:
    """Guidance of a round, with one table of arrays for all that share it."""

    round: int
    arrays: Arrays

    @property
    def size(self) -> int:
        return sum(values.nbytes for values in self.arrays.values())


class Mailbox:
    """Waiting guidance of clients: from their last round, and the newest they missed."""

    def __init__(self) -> None:
        self._own: dict[int, GuidanceParcel] = {}
        self._missed: dict[int, GuidanceParcel] = {}
        self._for_all: GuidanceParcel | None = None  # for clients that are not known yet

    def put(self, client: int, parcel: GuidanceParcel) -> None:
        """Leave guidance of a round that the client took part in."""
        self._own[client] = parcel
        missed = self._missed.get(client)
        if missed is not None and missed.round <= parcel.round:  # out of date before it was sent
            del self._missed[client]

    def put_missed(self, clients: Iterable[int], parcel: GuidanceParcel) -> None:
        self._missed |= dict.fromkeys(clients, parcel)

    def put_for_all(self, clients: Iterable[int], parcel: GuidanceParcel) -> None:
        """Leave guidance for absent clients, and for those that are not known yet."""
        self._for_all = parcel
        self.put_missed(clients, parcel)

    def meet(self, client: int) -> None:
        """Note a new client: the guidance for all waits for it too."""
        if self._for_all is not None:
            self.put_missed([client], self._for_all)

    def take(self, client: int | None) -> GuidanceParcel | None:
        """Return, once, a client's guidance of its last round."""
        return None if client is None else self._own.pop(client, None)

    def take_missed(self, client: int | None, *, leave: bool = False) -> GuidanceParcel | None:
        """Return the newest guidance that a client missed (None: for all clients); with `leave` it stays."""
        if client is None:
            return self._for_all
        return self._missed.get(client) if leave else self._missed.pop(client, None)

    def state(self) -> dict[str, np.ndarray]:
        return add_prefix("own/", _state(self._own)) | add_prefix("missed/", _state(self._missed))

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._own, self._missed = (
            _restored(strip_prefix("own/", arrays)),
            _restored(strip_prefix("missed/", arrays)),
        )


def _state(waiting: Mapping[int, GuidanceParcel]) -> dict[str, np.ndarray]:
    clients_of: dict[int, list[int]] = {}
    for client in sorted(waiting):
        clients_of.setdefault(id(waiting[client].arrays), []).append(client)
    arrays: dict[str, np.ndarray] = {}
    for number, clients in enumerate(clients_of.values()):
        parcel = waiting[clients[0]]
        arrays |= add_prefix(f"{number}/guidance/", parcel.arrays)
        arrays[f"{number}/round"] = np.array(parcel.round)
        arrays[f"{number}/clients"] = np.array(clients)
    return arrays


def _restored(arrays: Mapping[str, np.ndarray]) -> dict[int, GuidanceParcel]:
    waiting: dict[int, GuidanceParcel] = {}
    for own in group_by_number(arrays).values():
        parcel = GuidanceParcel(int(own["round"]), strip_prefix("guidance/", own))
        waiting |= dict.fromkeys(own["clients"].tolist(), parcel)
    return waiting
