"""Groups of clients that hold the same model after fusion."""

from collections.abc import Hashable
from contextlib import suppress

from fedkd.errors import UserError
from fedkd.fusion import STRATEGIES, Capabilities, FusionStrategy, replaces_predictor
from fedkd.models import architecture_names, client_models
from fedkd.plan.hyperparameters import bind_strategy
from fedkd.plan.schedule import Schedule
from fedkd.scenario import Scenario


def models_after_fusion(
    scenario: Scenario, schedule: Schedule, strategy: FusionStrategy | None = None
) -> tuple[Hashable, ...]:
    """Return a label of each client's model after fusion, `[N]`; equal labels share a model."""
    if strategy is None and (scenario.fusion.from_flower or scenario.fusion.strategy in STRATEGIES.builtin):
        with suppress(UserError):
            strategy, _ = bind_strategy(scenario)
    can = Capabilities() if strategy is None else strategy.capabilities
    shares = can.shares_model or can.brings_model
    otherwise = strategy is not None and replaces_predictor(strategy)
    if shares and not otherwise and (schedule.in_step or not can.fuses_by_task):
        return tuple(architecture_names(client_models(scenario)))
    return tuple(range(scenario.data.clients))
