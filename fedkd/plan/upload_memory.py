"""Estimate how many uploads lie in memory from one round to the next."""

from dataclasses import replace

import numpy as np

from fedkd.plan.graph import Graph
from fedkd.plan.plan import Plan

LOOKED_AT = 50
"""Rounds of a graph that are followed, where links are drawn each round and what is heard is passed on."""
TAKEN = 3  # the last rounds of them, of which the one with most counts
MOST_FOLLOWED = 200  # clients of a graph that are followed, one by one


def max_stored_uploads(plan: Plan) -> int:
    """Return how many uploads the server's process keeps at most, were all clients there."""
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
    """Return how many uploads somebody remembers over a graph; one that several have counts once."""
    clients = graph.clients
    if clients > MOST_FOLLOWED:  # as many of each as in a smaller one, which is less than there are
        if graph.kind == "file":
            return clients
        smaller = replace(graph, clients=MOST_FOLLOWED, k=min(graph.k, MOST_FOLLOWED - 2))
        return clients * _remembered(smaller, rounds, relay=relay) // MOST_FOLLOWED
    # What is passed on has gone around by the logarithm of N, over links that are drawn each round.
    last = min(rounds, LOOKED_AT if relay and graph.period is None else 2 * clients)
    newest = np.zeros((clients, clients), dtype=np.int64)  # the round of what each has of each; 0: nothing
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
