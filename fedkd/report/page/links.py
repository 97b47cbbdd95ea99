"""What clients sent each other, of a run without a server."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedkd.report.page.figure import Figure, constant, heat_map, named_axes
from fedkd.report.page.record import RunRecord
from fedkd.tracking.links import read_links, recorded_link_rounds

MOST_CLIENTS = 50
"""Clients up to which a page shows every pair."""


def link_figures(record: RunRecord) -> Iterator[Figure]:
    """Yield who heard whom and what that weighed over the run, where there is no server."""
    clients = len(record.models)
    if record.scenario.topology.graph == "star" or clients > MOST_CLIENTS:
        return
    rounds, sizes = np.zeros((clients, clients), dtype=np.int64), np.zeros((clients, clients), dtype=np.int64)
    for round in recorded_link_rounds(record.folder):
        table = read_links(record.folder, round)
        if table is not None and table.clients and max(table.clients) < clients:
            own = np.ix_(table.clients, table.clients)
            rounds[own] += table.heard
            sizes[own] += table.sizes
    if not rounds.any():
        return
    names = [str(client) for client in range(clients)]
    shown = np.where(rounds > 0, sizes / 1e3, np.nan)
    alike = constant(shown)
    told = "" if alike is None else f" Every link carried {alike:.4g} kB."
    caption = f"Bytes over each link, all rounds together; empty where there was none.{told}"
    rows = [[n, m, int(rounds[n, m]), int(sizes[n, m])] for n, m in np.argwhere(rounds).tolist()]
    columns, data = (
        ["receiver", "sender", "rounds", "bytes"],
        [heat_map(shown, names, names, unit="kB", digits=0)],
    )
    layout, height = named_axes("sender", "receiver") | {"showlegend": False}, min(240 + 22 * clients, 640)
    yield Figure("links", "Who heard whom", columns, rows, data, layout, caption, height)
