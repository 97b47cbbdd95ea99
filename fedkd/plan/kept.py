"""How many uploads lie in memory from one round to the next, for estimates."""

from __future__ import annotations

import numpy as np

from fedkd.fusion.strategy import FusionStrategy
from fedkd.plan.graph import Graph
from fedkd.plan.plan import Plan

LOOKED_AT = 50
"""Rounds of a graph that are followed."""
MOST_FOLLOWED = 500
"""Clients of a graph that are followed, one by one."""


def uploads_kept(plan: Plan) -> int:
    """Return how many uploads are kept in the server's process, at most, were all clients there.

    Those of clients that are at work or wait, where rounds are asynchronous; the newest of everyone, where
    old knowledge is fused along; and without a server, what clients have heard and remember.
    """
    scenario, strategy = plan.scenario, plan.strategy
    if not isinstance(strategy, FusionStrategy) or strategy.sends == "nothing":
        return 0
    clients, unwaiting, bank = scenario.data.clients, scenario.asynchronous, scenario.fusion.bank
    if plan.graph is not None:
        remembers = strategy.stale_decay is not None
        return _remembered(plan.graph, scenario.rounds, relay=scenario.topology.relay) if remembers else 0
    kept = 0 if unwaiting is None else unwaiting.concurrency or clients
    if bank is not None and scenario.continual is not None:
        kept += clients * (scenario.continual.tasks.count or 1)
    elif not strategy.brings_model and (unwaiting is not None or strategy.stale_decay is not None):
        kept += clients
    return kept


def _remembered(graph: Graph, rounds: int, *, relay: bool) -> int:
    """Return how many uploads somebody remembers over a graph, at most; one that several have counts once."""
    clients, most = graph.clients, 0
    if clients > MOST_FOLLOWED:
        return clients * min(rounds, clients)
    newest = np.zeros((clients, clients), dtype=np.int64)  # the round of what each has of each; 0: nothing
    for round in range(1, min(rounds, LOOKED_AT) + 1):
        heard = graph.edges(round)
        before, newest = newest, np.where(heard, round, newest)
        if relay:
            told = np.stack([before[senders].max(axis=0) for senders in heard])
            newest = np.maximum(newest, told)
        ordered = np.sort(newest, axis=0)
        others = int((np.diff(ordered, axis=0) > 0).sum())  # each more than the one before it
        most = max(most, others + int((ordered[0] > 0).sum()))
    return most
