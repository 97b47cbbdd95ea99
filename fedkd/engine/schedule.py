"""Which actor owns which client: longest processing time first."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from statistics import median


def assign_clients(costs: Sequence[float], actors: int) -> list[list[int]]:
    """Deal clients to actors so that the busiest actor has as little to do as a greedy rule can make it.

    Longest processing time first (Graham, "Bounds on Multiprocessing Timing Anomalies", 1969): the most
    expensive client left goes to the actor with the least work. Every client is charged one median cost on
    top of its own, for the work of a round that does not depend on its size.

    Args:
        costs: Cost of each client's round, in any unit.
        actors: Number of actors, at least 1.

    Returns:
        For each actor its clients, most expensive first. Every client is in exactly one list.
    """
    base = median(costs) if costs else 0.0
    order = sorted(range(len(costs)), key=lambda client: (-costs[client], client))
    owned: list[list[int]] = [[] for _ in range(actors)]
    heap = [(0.0, 0, actor) for actor in range(actors)]  # ties: to the actor with the fewest clients
    for client in order:
        load, clients, actor = heapq.heappop(heap)
        owned[actor].append(client)
        heapq.heappush(heap, (load + costs[client] + base, clients + 1, actor))
    return owned
