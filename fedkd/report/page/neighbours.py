"""The weights between clients, round by round: the data of the matrix and the graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd.report.page.figure import grid
from fedkd.report.page.record import RunRecord
from fedkd.storage import list_table_rounds
from fedkd.tracking import FUSION_STEM, Neighbours, read_neighbours

MOST_CLIENTS = 50  # up to this number, a page shows every pair of clients; above it, architectures
MOST_ROUNDS = 40  # of a page, evenly spread over all
DIGITS = 3


@dataclass(frozen=True)
class NeighbourView:
    """Tables over rounds, of clients or of architectures.

    Each round has its number, the positions of its participants in `labels`, and tables with a row per
    receiver: weights and, if recorded, distances and the effect of leaving a sender out.
    """

    labels: Sequence[str]
    of_clients: bool
    rounds: Sequence[Mapping[str, Any]]
    skipped: int  # recorded rounds that are not shown


def neighbour_view(record: RunRecord) -> NeighbourView | None:
    """Return the recorded weights of a run; None if there is nothing to show."""
    recorded = list_table_rounds(record.folder / FUSION_STEM, "round")
    if not recorded or len(record.models) < 2:
        return None
    places = np.unique(np.linspace(0, len(recorded) - 1, min(len(recorded), MOST_ROUNDS)).round().astype(int))
    of_clients = len(record.models) <= MOST_CLIENTS
    architectures = list(dict.fromkeys(record.models))
    if not of_clients and len(architectures) < 2:
        return None
    rounds = []
    for place in places:
        table = read_neighbours(record.folder, recorded[place])
        if table is None or not table.clients or max(table.clients) >= len(record.models):
            continue
        rounds.append(_of_clients(table) if of_clients else _of_architectures(table, record, architectures))
    if not rounds:
        return None
    labels = [record.client_name(c) for c in range(len(record.models))] if of_clients else architectures
    return NeighbourView(labels, of_clients, rounds, len(recorded) - len(rounds))


def _of_clients(table: Neighbours) -> dict[str, Any]:
    known = {"w": table.weights, "d": table.distances, "l": table.left_out}
    tables = {name: grid(values, DIGITS) for name, values in known.items() if values is not None}
    return {"round": table.round, "places": list(table.clients), **tables}


def _of_architectures(table: Neighbours, record: RunRecord, architectures: Sequence[str]) -> dict[str, Any]:
    """Return the mean over receivers of the total weight given to each architecture."""
    group = np.array([architectures.index(record.models[client]) for client in table.clients])
    if table.senders is None:
        sender_group = np.broadcast_to(group, table.weights.shape)
    else:
        of_client = dict(zip(table.clients, group.tolist(), strict=True))
        sender_group = np.vectorize(of_client.__getitem__, otypes=[int])(table.senders)
    present = sorted(set(group.tolist()))
    given = np.array([table.weights * (sender_group == sender) for sender in present]).sum(axis=2)
    weights = np.array([given[:, group == receiver].mean(axis=1) for receiver in present])
    return {"round": table.round, "places": present, "w": grid(weights, DIGITS)}
