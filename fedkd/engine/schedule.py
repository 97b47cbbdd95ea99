"""Which actor owns which clients: longest processing time first."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from statistics import median


def assign_work(costs: Sequence[float], actors: int) -> list[list[int]]:
    """Deal blocks of clients to actors so that the busiest has as little to do as a greedy rule can make it.

    Longest processing time first (Graham, "Bounds on Multiprocessing Timing Anomalies", 1969): the most
    expensive block left goes to the actor with the least work. Every block is charged one median cost on
    top of its own, for the work of a round that does not depend on its size.

    Args:
        costs: Cost of each block's round, in any unit.
        actors: Number of actors, at least 1.

    Returns:
        For each actor its blocks, most expensive first. Every block is in exactly one list.
    """
    base = median(costs) if costs else 0.0
    order = sorted(range(len(costs)), key=lambda block: (-costs[block], block))
    owned: list[list[int]] = [[] for _ in range(actors)]
    heap = [(0.0, 0, actor) for actor in range(actors)]  # ties: to the actor with the fewest blocks
    for block in order:
        load, blocks, actor = heapq.heappop(heap)
        owned[actor].append(block)
        heapq.heappush(heap, (load + costs[block] + base, blocks + 1, actor))
    return owned
