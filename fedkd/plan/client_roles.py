"""Poisoned, evaluated and counted clients, drawn from the seed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from fedkd.fusion import aux_networks_of
from fedkd.randomness import numpy_generator
from fedkd.scenario import Scenario

if TYPE_CHECKING:
    from fedkd.fusion import FusionStrategy

_TRAINED = "accuracy_before_fusion_"


def poisoned_clients(scenario: Scenario) -> frozenset[int]:
    """Return the poisoned clients: a rounded share of all, drawn once."""
    clients = scenario.data.clients
    number = round_half_up(scenario.faults.poisoned * clients)
    if number == 0:
        return frozenset()
    drawn = numpy_generator(scenario.seed, "poisoned").choice(clients, number, replace=False)
    return frozenset(int(client) for client in drawn)


def poisoning_victim(scenario: Scenario, client: int) -> int:
    """Return the honest client whose class distribution a poisoned one imitates."""
    poisoned = poisoned_clients(scenario)
    honest = [other for other in range(scenario.data.clients) if other not in poisoned] or [client]
    return int(numpy_generator(scenario.seed, "victim", client=client).choice(honest))


def round_half_up(value: float) -> int:
    """Return the nearest integer, .5 upwards."""
    return int(value + 0.5)


def evaluated_clients(scenario: Scenario) -> tuple[int, ...]:
    """Return the evaluated clients, drawn once, honest ones first."""
    clients, number = scenario.data.clients, scenario.evaluate_clients
    if number is None or number >= clients:
        return tuple(range(clients))
    poisoned = poisoned_clients(scenario)
    drawn = numpy_generator(scenario.seed, "evaluate-clients").permutation(clients).tolist()
    return tuple(sorted(sorted(drawn, key=poisoned.__contains__)[:number]))


def counted_clients(scenario: Scenario) -> frozenset[int]:
    """Return the clients that means count: the evaluated honest clients, if any."""
    evaluated = frozenset(evaluated_clients(scenario))
    return evaluated - poisoned_clients(scenario) or evaluated


def separate_model_accuracies(strategy: FusionStrategy) -> list[tuple[Literal["local", "global"], str, str]]:
    """Return split, metric and key of the accuracies of a client's separate models."""
    splits: tuple[Literal["local", "global"], ...] = ("local", "global")
    return [
        (split, metric, f"{metric}_{split}")
        for split in splits
        for name in aux_networks_of(strategy).eval_models
        for metric in (f"{_TRAINED}{name}", f"accuracy_{name}")
    ]


def listed_metrics(scenario: Scenario) -> list[tuple[Literal["local", "global"], str, str]]:
    """Return split, metric and key of the metrics besides accuracy, before and after fusion."""
    splits: tuple[Literal["local", "global"], ...] = ("local", "global")
    return [
        (split, metric, f"{metric}_{split}")
        for split in splits
        for name in scenario.metric_names
        for metric in (f"{name}_before_fusion", name)
    ]


def separately_measured_models(metrics: Iterable[str]) -> tuple[str, ...]:
    """Return the separate client models whose accuracies are among the recorded metrics."""
    named = dict.fromkeys(metrics)
    told = (name.removeprefix(_TRAINED) for name in named if name.startswith(_TRAINED))
    return tuple(name for name in told if f"accuracy_{name}" in named)
