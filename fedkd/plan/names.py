"""The names that a scenario's strategy and learner go by, whatever somebody calls them."""

from __future__ import annotations

from typing import Any

from fedkd.continual.registry import LEARNERS
from fedkd.fusion.registry import STRATEGIES
from fedkd.scenario.schema import FLOWER_PREFIX, Scenario


def canonical_strategy(name: str) -> str:
    """Return the name of a strategy, fedkd's or Flower's: `FedAvg` and `flwr:fedavg` are `flwr:FedAvg`."""
    found = STRATEGIES.canonical(name.removeprefix(FLOWER_PREFIX))
    of_flower = found.startswith(FLOWER_PREFIX)
    return found if of_flower or not name.startswith(FLOWER_PREFIX) else name


def with_canonical_names(scenario: Scenario) -> Scenario:
    """Return a scenario that names its strategy and its learner as they are called here."""
    strategy = canonical_strategy(scenario.fusion.strategy)
    changed: dict[str, Any] = {}
    if strategy != scenario.fusion.strategy:
        changed["fusion"] = scenario.fusion.model_copy(update={"strategy": strategy})
    if scenario.continual is not None:
        learner = LEARNERS.canonical(scenario.continual.learner)
        if learner != scenario.continual.learner:
            changed["continual"] = scenario.continual.model_copy(update={"learner": learner})
    return scenario.model_copy(update=changed) if changed else scenario
