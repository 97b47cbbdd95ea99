"""Requirements of strategies and keys on the communication graph."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from fedkd.errors import refuse_if
from fedkd.fusion import connected_components, is_undirected
from fedkd.models import architecture_names
from fedkd.plan.checks.capability_table import Case, check_table
from fedkd.plan.graph import Graph
from fedkd.plan.plan import Plan

KEY = "fusion.strategy"
LOOKED_AT = 200  # most rounds to check of a graph that is drawn each round


def check_graph(plan: Plan) -> None:
    """Raise a `UserError` if the strategy does not support the graph."""
    strategy, scenario, graph = plan.strategy, plan.scenario, plan.graph
    name, kind = scenario.fusion.strategy, scenario.topology.graph
    refuse_if(
        graph is None and "graph" in strategy.capabilities.needs,
        f"'{name}' needs links between clients, but topology.graph is 'star'; use another graph, such as"
        " 'ring', or the strategy 'flwr:FedAvg'",
        KEY,
    )
    if graph is None or strategy.capabilities.sends == "nothing":
        return
    check_table(Case(scenario, strategy, plan.learner), ("topology.graph",))
    for key, given, what in (
        ("fusion.knowledge_cache", scenario.fusion.knowledge_cache is not None, "needs a server"),
        ("fusion.orthogonal", scenario.fusion.orthogonal is not None, "needs a server"),
        ("fusion.filters", scenario.fusion.filters, "needs a server"),
        ("clock", scenario.clock is not None, "simulates messages to a server"),
    ):
        refuse_if(given, f"{what}; topology.graph is '{kind}', which has none", key)
    refuse_if(
        scenario.topology.mixing == "metropolis" and not all(map(is_undirected, some_rounds(plan, graph))),
        f"must be 'push_sum' or left out: graph '{kind}' has links in one direction only",
        "topology.mixing",
    )
    refuse_if(
        scenario.topology.relay and strategy.capabilities.stale_decay is None,
        "needs a strategy that weights knowledge by its age: set fusion.stale_decay, e.g. 0.5, with 'knfu' or"
        " 'experts'",
        "topology.relay",
    )


def some_rounds(plan: Plan, graph: Graph) -> Iterator[np.ndarray]:
    """Yield the distinct graphs of the run, `[N, N]` bool, up to a limit."""
    last = min(plan.schedule.rounds, graph.period or LOOKED_AT, LOOKED_AT)
    return map(graph.edges, range(1, last + 1))


def unconnected_clients(plan: Plan, graph: Graph) -> list[tuple[str, list[tuple[int, ...]]]]:
    """Return unconnected groups of clients, by architecture if weights are mixed."""
    strategy = plan.strategy
    if strategy.capabilities.sends == "nothing":
        return []
    union = np.eye(graph.clients, dtype=bool)
    for heard in islice(some_rounds(plan, graph), LOOKED_AT):
        union |= heard
    mixes = strategy.capabilities.over_graph == "mixed"
    names = architecture_names(plan.groups) if mixes else ("",) * graph.clients
    found = []
    for name in dict.fromkeys(names):
        own = [client for client, other in enumerate(names) if other == name]
        pieces = [tuple(own[at] for at in part) for part in connected_components(union[np.ix_(own, own)])]
        if len(pieces) > 1 or (mixes and len(own) == 1 and graph.clients > 1):
            found.append((name, pieces))
    return found
