"""Whether a learner can keep its word with a scenario's models and its strategy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedkd.continual import (
    Learner,
    LearnerContext,
    TaskLearning,
    needs_boundaries,
    shapes_training,
    trains_on_old_tasks,
)
from fedkd.data import Data, FederatedStream
from fedkd.errors import UserError, refuse_if
from fedkd.fusion import overrides
from fedkd.plan.plan import Plan
from fedkd.plugins import calling, show_value
from fedkd.scenario import Scenario

KEY = "fusion.strategy"


def check_learner(learner: Learner, plan: Plan, data: Data, models: Sequence[Any]) -> None:
    """Refuse a learner that cannot keep its word with these models and this strategy."""
    assert isinstance(data, FederatedStream)
    scenario, needs, traits = plan.scenario, plan.capabilities.needs, learner.traits
    for index, (group, model) in enumerate(zip(scenario.clients, models, strict=True)):
        if not isinstance(model, nn.Module):
            raise UserError(
                f"'{learner.name}' changes gradients, but model '{group.model}' (clients.{index}) is not a"
                " network",
                key="continual.learner",
            )
        _prepare(learner, scenario, data, model)
    strategy = scenario.fusion.strategy
    made_for_it = plan.capabilities.learner == learner.name
    if "weights" in needs:
        averages = f"'{strategy}' averages weights, and '{learner.name}'"
        predictions = "use a strategy that exchanges predictions"
        told = f"gives each task weights of its own that averaging would overwrite; {predictions}"
        refuse_if(traits.isolates and not made_for_it, f"{averages} {told}", KEY)
        told = "scales them for each task within subspaces that each client has found for itself, which an"
        told += f" average does not fit; {predictions}"
        refuse_if(traits.scales_own_subspaces, f"{averages} {told}", KEY)
        schedule, takes_part = plan.schedule, plan.schedule.participation
        everybody = (takes_part.clients_per_round or schedule.clients) >= schedule.clients
        in_step = schedule.in_step and everybody and takes_part.dropout == 0.0
        told = "begins every task with the initial ones: all clients have to be there in every round, at the"
        refuse_if(traits.begins_anew and not in_step, f"{averages} {told} same task", KEY)
    assert scenario.continual is not None
    if not scenario.continual.tasks.boundaries and needs_boundaries(learner):
        told = f"must be true, as '{learner.name}' has to be told when a task begins or ends"
        raise UserError(told, key="continual.tasks.boundaries")
    once = scenario.continual.online and not traits.replays_only
    if once and scenario.training.local_epochs != 1:
        told = f"must be 1, as each sample is trained on once, got {scenario.training.local_epochs}"
        raise UserError(told, key="training.local_epochs")
    if once and traits.retrains_old_tasks:
        told = f"must be false, as '{learner.name}' trains on all samples so far again"
        raise UserError(told, key="continual.online")
    if traits.replays_only and scenario.training.early_stopping is not None:
        raise UserError(
            f"not allowed: '{learner.name}' trains on what it remembers alone, and keeps none of that apart",
            key="training.early_stopping",
        )
    # Neither private samples nor targets come along where each is trained on once, or by itself.
    once_only = "each sample is trained on once" if scenario.continual.online else None
    remembers = f"'{learner.name}' trains on what it remembers alone" if traits.replays_only else None
    for name, given, reason in (
        ("ce_weight", plan.recipe.ce_weight, remembers or once_only),
        ("kd_weight", plan.recipe.kd_weight, remembers),
    ):
        if given > 0 and reason is not None:
            raise UserError(f"must be 0, as {reason}, got {given:g}", key=f"fusion.{name}")
    if scenario.fusion.logit_adjustment != 0:
        raise UserError(
            f"must be 0 in a stream of tasks, whose accuracies are those of the learner's outputs, got"
            f" {show_value(scenario.fusion.logit_adjustment)}",
            key="fusion.logit_adjustment",
        )
    shapes = plan.capabilities.uses_local_loss or any(
        overrides(plan.strategy, hook) for hook in ("rehearsal", "local_step")
    )
    if shapes and shapes_training(learner):
        what = (
            "teaches the present task's classes" if plan.capabilities.uses_local_loss else "rehearses others"
        )
        what = "has a loss of its own" if overrides(plan.strategy, "local_step") else what
        old = trains_on_old_tasks(learner)
        why = "trains on the samples of earlier tasks too" if old else "has a loss of its own"
        raise UserError(
            f"'{strategy}' {what} in local training, where '{learner.name}'"
            f" {why}; use a strategy that exchanges predictions",
            key=KEY,
        )
    if (
        overrides(plan.strategy, "local_step")
        and not made_for_it
        and (traits.isolates or traits.scales_own_subspaces)
    ):
        raise UserError(
            f"'{strategy}' has a loss of its own in local training, which sees models by their own weights,"
            f" and '{learner.name}' puts others in their place for each task",
            key=KEY,
        )
    if scenario.faults.poisoned > 0 and scenario.faults.poison == "imitation":
        raise UserError("'imitation' has no one distribution to imitate in a stream", key="faults.poison")


def _prepare(learner: Learner, scenario: Scenario, stream: FederatedStream, model: nn.Module) -> None:
    tasks = stream.client(0)

    def samples(task: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(tasks[task].train_x), torch.from_numpy(tasks[task].train_y)

    with calling(f"'{learner.name}'", "continual.learner", " when it was to prepare a model"):
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
