"""The training recipe: losses that a client minimises together."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fedkd.scenario import Scenario

if TYPE_CHECKING:
    from fedkd.fusion import FusionStrategy


@dataclass(frozen=True)
class Recipe:
    """Weights γ of the cross entropy in distillation and ρ of distillation in local training."""

    ce_weight: float
    kd_weight: float


ALTERNATING = Recipe(0.0, 0.0)
JOINT = Recipe(1.0, 0.3)  # ρ = 0.3 was best in a pilot with other code and models


def recipe_of(scenario: Scenario, strategy: FusionStrategy) -> Recipe:
    """Return the weights in `fusion`, else those of the recipe or the strategy's paper."""
    usual, fusion = _usual(scenario, strategy), scenario.fusion
    return Recipe(
        usual.ce_weight if fusion.ce_weight is None else fusion.ce_weight,
        usual.kd_weight if fusion.kd_weight is None else fusion.kd_weight,
    )


def _usual(scenario: Scenario, strategy: FusionStrategy) -> Recipe:
    if scenario.training.recipe == "joint":
        return JOINT
    return Recipe(1.0, 0.0) if strategy.capabilities.trains_jointly else ALTERNATING


def followed(scenario: Scenario, strategy: FusionStrategy) -> list[str]:
    """Return the keys of `fusion` whose weights the recipe decides."""
    usual = asdict(_usual(scenario, strategy))
    return [key for key, value in usual.items() if getattr(scenario.fusion, key) == value]
