"""The selection of poisoned clients and their victims."""

from __future__ import annotations

import pytest

from fedkd.plan.client_roles import counted_clients, poisoned_clients, poisoning_victim
from fedkd.plan.load import parse_scenario
from fedkd.scenario.schema import Scenario


def scenario_of(clients: int, share: float, **changes) -> Scenario:
    return parse_scenario({"data": {"clients": clients}, "faults": {"poisoned": share}, **changes})


@pytest.mark.parametrize(
    ("share", "clients", "number"),
    [(0.0, 10, 0), (0.1, 10, 1), (0.25, 10, 3), (0.24, 10, 2), (0.3, 7, 2), (0.05, 4, 0), (1.0, 5, 5)],
)
def test_the_share_of_poisoned_clients_is_exact(share, clients, number):
    scenario = scenario_of(clients, share)
    assert len(poisoned_clients(scenario)) == number
    assert poisoned_clients(scenario) == poisoned_clients(scenario)


def test_the_seed_selects_the_poisoned_clients():
    drawn = {poisoned_clients(scenario_of(20, 0.3, seed=seed)) for seed in range(20)}
    assert len(drawn) > 15
    assert set().union(*drawn) == set(range(20))


def test_poisoned_clients_count_only_if_all_are_poisoned():
    some = scenario_of(10, 0.3)
    assert counted_clients(some) == set(range(10)) - poisoned_clients(some)
    assert counted_clients(scenario_of(4, 1.0)) == set(range(4))


def test_a_victim_is_honest_and_fixed():
    scenario = scenario_of(10, 0.3)
    for client in poisoned_clients(scenario):
        assert poisoning_victim(scenario, client) not in poisoned_clients(scenario)
        assert poisoning_victim(scenario, client) == poisoning_victim(scenario, client)
    assert poisoning_victim(scenario_of(4, 1.0), 2) == 2
