"""Guidance that has been fused and not been sent yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fedkd.fusion.views import Arrays
from fedkd.namespaces import below, under


@dataclass(frozen=True, eq=False)
class Parcel:
    """Guidance on its way.

    Attributes:
        round: Round it was fused in.
        arrays: What it is made of; one table for all where it is shared.
    """

    round: int
    arrays: Arrays


class Mailbox:
    """The newest parcel of each client, until the next message takes it along."""

    def __init__(self) -> None:
        self._waiting: dict[int, Parcel] = {}
        self._for_all: Parcel | None = None  # what somebody receives who is not known yet

    def put(self, client: int, parcel: Parcel) -> None:
        """Leave a parcel for a client, in place of an older one."""
        self._waiting[client] = parcel

    def put_for_all(self, clients: Iterable[int], parcel: Parcel) -> None:
        """Leave a parcel for all clients, known or not."""
        self._for_all = parcel
        self._waiting = dict.fromkeys(clients, parcel)

    def take(self, client: int | None) -> Parcel | None:
        """Return what waits for a client, once.

        Args:
            client: Client index; None: it is not known who that is, and what is for all can be no mistake.
        """
        return self._for_all if client is None else self._waiting.pop(client, None)

    def state(self) -> dict[str, np.ndarray]:
        """Return all that waits; a parcel that several wait for is there once."""
        clients_of: dict[int, list[int]] = {}
        for client in sorted(self._waiting):
            clients_of.setdefault(id(self._waiting[client].arrays), []).append(client)
        arrays: dict[str, np.ndarray] = {}
        for number, clients in enumerate(clients_of.values()):
            parcel = self._waiting[clients[0]]
            arrays |= under(f"{number}/guidance/", parcel.arrays)
            arrays[f"{number}/round"] = np.array(parcel.round)
            arrays[f"{number}/clients"] = np.array(clients)
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`."""
        self._waiting = {}
        for number in {name.partition("/")[0] for name in arrays}:
            own = below(f"{number}/", arrays)
            parcel = Parcel(int(own["round"]), below("guidance/", own))
            self._waiting |= dict.fromkeys(own["clients"].tolist(), parcel)
