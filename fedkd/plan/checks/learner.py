"""Requirements of a learner on a scenario's models and strategy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedkd.continual import (
    Learner,
    LearnerContext,
    TaskLearning,
    changes_training,
    needs_boundaries,
    trains_on_old_tasks,
)
from fedkd.data import Data, FederatedStream
from fedkd.errors import UserError, refuse_if
from fedkd.fusion import overrides_hook
from fedkd.plan.plan import Plan
from fedkd.plugins import plugin_call, show_value
from fedkd.scenario import Scenario

KEY = "fusion.strategy"


def check_learner(learner: Learner, plan: Plan, data: Data, models: Sequence[Any]) -> None:
    """Raise a `UserError` if the learner does not support the models or the strategy."""
    assert isinstance(data, FederatedStream)
    scenario, needs, traits = plan.scenario, plan.capabilities.needs, learner.traits
    for index, (group, model) in enumerate(zip(scenario.clients, models, strict=True)):
        told = f"'{learner.name}' changes gradients, but model '{group.model}' (clients.{index})"
        refuse_if(not isinstance(model, nn.Module), f"{told} is not a network", "continual.learner")
        _prepare(learner, scenario, data, model)
    strategy = scenario.fusion.strategy
    made_for_it = plan.capabilities.learner == learner.name
    if "weights" in needs:
        averages = f"'{strategy}' averages weights, and '{learner.name}'"
        predictions = "use a strategy that exchanges predictions"
        told = f"gives each task its own weights, which averaging would overwrite; {predictions}"
        refuse_if(traits.isolates and not made_for_it, f"{averages} {told}", KEY)
        told = f"scales them in different subspaces per client, which averages do not fit; {predictions}"
        refuse_if(traits.scales_own_subspaces, f"{averages} {told}", KEY)
        schedule, takes_part = plan.schedule, plan.schedule.participation
        everybody = (takes_part.clients_per_round or schedule.clients) >= schedule.clients
        in_step = schedule.in_step and everybody and takes_part.dropout == 0.0
        told = "resets them at every task; it needs all clients in every round, at the same task"
        refuse_if(traits.begins_anew and not in_step, f"{averages} {told}", KEY)
    assert scenario.continual is not None
    unmarked = not scenario.continual.tasks.boundaries and needs_boundaries(learner)
    told = f"must be true: '{learner.name}' needs task boundaries"
    refuse_if(unmarked, told, "continual.tasks.boundaries")
    once, epochs = scenario.continual.online and not traits.replays_only, scenario.training.local_epochs
    told = f"must be 1, as continual.online trains on each sample once, got {epochs}"
    refuse_if(once and epochs != 1, told, "training.local_epochs")
    told = f"must be false: '{learner.name}' retrains on all samples so far"
    refuse_if(once and traits.retrains_old_tasks, told, "continual.online")
    stops = traits.replays_only and scenario.training.early_stopping is not None
    told = f"not allowed: '{learner.name}' trains only on its buffer, and holds out no samples"
    refuse_if(stops, told, "training.early_stopping")
    # These leave no private samples or targets for a second loss.
    once_only = "continual.online trains on each sample once" if scenario.continual.online else None
    remembers = f"'{learner.name}' trains only on its buffer" if traits.replays_only else None
    for name, given, reason in (
        ("ce_weight", plan.recipe.ce_weight, remembers or once_only),
        ("kd_weight", plan.recipe.kd_weight, remembers),
    ):
        told = f"must be 0, as {reason}, got {given:g}"
        refuse_if(given > 0 and reason is not None, told, f"fusion.{name}")
    adjustment = scenario.fusion.logit_adjustment
    told = "must be 0 in a stream of tasks, which evaluates the learner's outputs, got"
    refuse_if(adjustment != 0, f"{told} {show_value(adjustment)}", "fusion.logit_adjustment")
    shapes = plan.capabilities.uses_local_loss or any(
        overrides_hook(plan.strategy, hook) for hook in ("rehearsal", "local_step")
    )
    if shapes and changes_training(learner):
        what = (
            "distils the present task's classes"
            if plan.capabilities.uses_local_loss
            else "distils transfer samples"
        )
        what = "has its own loss" if overrides_hook(plan.strategy, "local_step") else what
        old = trains_on_old_tasks(learner)
        why = "trains on samples of earlier tasks too" if old else "has its own loss"
        told = f"'{strategy}' {what} in local training, but '{learner.name}'"
        raise UserError(f"{told} {why}; use a strategy that exchanges predictions", key=KEY)
    apart = not made_for_it and (traits.isolates or traits.scales_own_subspaces)
    refuse_if(
        overrides_hook(plan.strategy, "local_step") and apart,
        f"'{strategy}' has its own loss in local training on the model's weights, but '{learner.name}'"
        " replaces the weights for each task",
        KEY,
    )
    imitates = scenario.faults.poisoned > 0 and scenario.faults.poison == "imitation"
    refuse_if(imitates, "'imitation' is not allowed in a stream of tasks", "faults.poison")


def _prepare(learner: Learner, scenario: Scenario, stream: FederatedStream, model: nn.Module) -> None:
    tasks = stream.client(0)

    def samples(task: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(tasks[task].train_x), torch.from_numpy(tasks[task].train_y)

    with plugin_call(f"'{learner.name}'", "continual.learner", " in preparing a model"):
        context = LearnerContext(
            model,
            [task.units for task in stream],
            stream.outputs,
            samples,
            seed=scenario.seed,
            client=0,
            batch_size=scenario.training.batch_size,
        )
        TaskLearning(learner, context)
