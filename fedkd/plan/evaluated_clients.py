"""Which clients are evaluated, and whose figures count, derived from the seed; which models of theirs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from fedkd.fusion.auxiliary import networks_of
from fedkd.plan.poisoned_clients import poisoned_clients
from fedkd.randomness import numpy_generator
from fedkd.scenario.schema import Scenario

if TYPE_CHECKING:
    from fedkd.fusion.strategy import FusionStrategy

_TRAINED = "accuracy_before_fusion_"


def evaluated_clients(scenario: Scenario) -> tuple[int, ...]:
    """Return the evaluated clients, drawn once; poisoned ones only where honest ones are too few."""
    clients, number = scenario.data.clients, scenario.evaluate_clients
    if number is None or number >= clients:
        return tuple(range(clients))
    poisoned = poisoned_clients(scenario)
    drawn = numpy_generator(scenario.seed, "evaluate-clients").permutation(clients).tolist()
    return tuple(sorted(sorted(drawn, key=poisoned.__contains__)[:number]))


def counted_clients(scenario: Scenario) -> frozenset[int]:
    """Return the clients whose own figures count in means: all that are evaluated and honest, if any is."""
    evaluated = frozenset(evaluated_clients(scenario))
    return evaluated - poisoned_clients(scenario) or evaluated


def accuracies_of_each(strategy: FusionStrategy) -> list[tuple[Literal["local", "global"], str, str]]:
    """Return split, metric and key of what is measured besides where a client's models are told apart."""
    splits: tuple[Literal["local", "global"], ...] = ("local", "global")
    return [
        (split, metric, f"{metric}_{split}")
        for split in splits
        for name in networks_of(strategy).eval_models
        for metric in (f"{_TRAINED}{name}", f"accuracy_{name}")
    ]


def models_told_apart(metrics: Iterable[str]) -> tuple[str, ...]:
    """Return which of a client's models have accuracies of their own among the names of recorded metrics."""
    named = dict.fromkeys(metrics)
    told = (name.removeprefix(_TRAINED) for name in named if name.startswith(_TRAINED))
    return tuple(name for name in told if f"accuracy_{name}" in named)
