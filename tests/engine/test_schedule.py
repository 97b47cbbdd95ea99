"""The assignment of clients to actors."""

from __future__ import annotations

from itertools import product
from statistics import median

import numpy as np
import pytest

from fedkd.data.load import load_data
from fedkd.engine.work_assignment import assign_work, client_costs
from fedkd.plan.client_roles import evaluated_clients
from fedkd.plan.load import parse_plan


def loads(costs, owned) -> list[float]:
    base = median(costs)
    return [sum(costs[client] + base for client in clients) for clients in owned]


@pytest.mark.parametrize("actors", [1, 2, 3, 7])
def test_every_client_has_exactly_one_owner(actors):
    costs = np.random.default_rng(0).lognormal(size=20).tolist()
    owned = assign_work(costs, actors)
    assert len(owned) == actors
    assert sorted(client for clients in owned for client in clients) == list(range(20))


def test_the_most_expensive_clients_come_first():
    costs = np.random.default_rng(1).lognormal(size=30).tolist()
    for clients in assign_work(costs, 4):
        assert [costs[client] for client in clients] == sorted(
            (costs[client] for client in clients), reverse=True
        )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("actors", [2, 3])
def test_the_schedule_is_within_grahams_bound(seed, actors):
    rng = np.random.default_rng(seed)
    costs = rng.lognormal(sigma=1.5, size=int(rng.integers(1, 8))).tolist()
    best = min(
        max(loads(costs, [[c for c, a in enumerate(choice) if a == actor] for actor in range(actors)]))
        for choice in product(range(actors), repeat=len(costs))
    )
    got = max(loads(costs, assign_work(costs, actors)))
    assert best - 1e-9 <= got <= (4 / 3 - 1 / (3 * actors)) * best + 1e-9


def test_one_huge_client_has_its_own_actor():
    owned = assign_work([1.0, 1.0, 100.0, 1.0, 1.0], 2)
    assert sorted(map(sorted, owned)) == [[0, 1, 3, 4], [2]]


def test_equal_clients_are_assigned_evenly_and_in_order():
    assert assign_work([5.0] * 6, 3) == [[0, 3], [1, 4], [2, 5]]
    assert assign_work([0.0] * 4, 2) == [[0, 2], [1, 3]], "free clients too"


def test_the_same_costs_give_the_same_owners():
    costs = np.random.default_rng(2).integers(1, 4, size=40).astype(float).tolist()
    assert assign_work(costs, 5) == assign_work(list(costs), 5)


def test_more_actors_than_clients_leaves_some_idle():
    assert assign_work([1.0, 2.0], 4) == [[1], [0], [], []]


@pytest.mark.parametrize(("strategy", "moments"), [("flwr:FedAvg", 1), ("knfu", 2)])
def test_evaluated_clients_count_as_more_work(strategy, moments, digits_scenario):
    """By the common test set, of samples that are predicted; those that are trained on count thrice."""
    data = digits_scenario["data"] | {
        "partition": {"scheme": "iid", "samples_per_client": 100},
        "transfer": {"size": 0 if strategy == "flwr:FedAvg" else 60},
        "test_size": 90,
    }
    changes = {"data": data, "fusion": {"strategy": strategy}, "evaluate_clients": 2, "evaluate_every": 2}
    plan = parse_plan(digits_scenario | changes)
    costs = client_costs(plan, load_data(plan.scenario))
    shared = 3 * 80 * plan.scenario.training.local_epochs
    if strategy == "knfu":
        shared += 60 * (3 * plan.scenario.fusion.distill_epochs + 1)
    expected = [
        shared + moments * 90 / 2 * (client in evaluated_clients(plan.scenario)) for client in range(4)
    ]
    assert len(set(expected)) == 2
    assert np.array(costs) / min(costs) == pytest.approx(np.array(expected) / min(expected))
