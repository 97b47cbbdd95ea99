"""Estimate the number of uploads kept in memory between rounds."""

from dataclasses import replace

import numpy as np

from fedkd.plan.graph import Graph
from fedkd.plan.plan import Plan

LOOKED_AT = 50
"""Simulated rounds of a graph with drawn links and relayed knowledge."""
TAKEN = 3  # last rounds, whose maximum is the estimate
MOST_FOLLOWED = 200  # clients of the largest graph that is simulated as a whole


def max_stored_uploads(plan: Plan) -> int:
    """Return the largest number of uploads in the server's process."""
    scenario, can = plan.scenario, plan.capabilities
    if can.by_flower or can.sends == "nothing":
        return 0
    clients, unwaiting = scenario.data.clients, scenario.asynchronous
    knowledge_cache = scenario.fusion.knowledge_cache
    if plan.graph is not None:
        remembers = can.stale_decay is not None
        return _remembered(plan.graph, scenario.rounds, relay=scenario.topology.relay) if remembers else 0
    kept = 0 if unwaiting is None else unwaiting.concurrency or clients
    if knowledge_cache is not None and scenario.continual is not None:
        kept += clients * (scenario.continual.tasks.count or 1)
    elif not can.brings_model and (unwaiting is not None or can.stale_decay is not None):
        kept += clients
    return kept


def _remembered(graph: Graph, rounds: int, *, relay: bool) -> int:
    """Return the number of distinct uploads in memory in a run over a graph."""
    clients = graph.clients
    if clients > MOST_FOLLOWED:  # upper bound: as many per client as in a smaller graph
        if graph.kind == "file":
            return clients
        smaller = replace(graph, clients=MOST_FOLLOWED, k=min(graph.k, MOST_FOLLOWED - 2))
        return clients * _remembered(smaller, rounds, relay=relay) // MOST_FOLLOWED
    # Over links drawn each round, knowledge spreads in log N rounds.
    last = min(rounds, LOOKED_AT if relay and graph.period is None else 2 * clients)
    newest = np.zeros((clients, clients), dtype=np.int64)  # receiver's newest round of each sender; 0: none
    age, most = newest, 0
    for round in range(1, last + 1):
        heard = graph.edges(round)
        before, newest = newest, np.where(heard, round, newest)
        if relay:
            told = np.stack([before[senders].max(axis=0) for senders in heard])
            newest = np.maximum(newest, told)
        earlier, age = age, np.where(newest > 0, round - newest, -1)
        settled = graph.stays and np.array_equal(earlier, age)
        if settled or round > last - TAKEN:
            ordered = np.sort(newest, axis=0)  # distinct rounds above 0, column by column
            most = max(most, int((np.diff(ordered, axis=0) > 0).sum() + (ordered[0] > 0).sum()))
        if settled:
            break
    return most
