"""Requirements of strategies and of `[fusion]` on the stream of tasks."""

from torch import nn

from fedkd.continual import Phases, check_layers, reopening_obstacle, statistics_names
from fedkd.errors import UserError, refuse_if
from fedkd.fusion import overrides_hook
from fedkd.plan.plan import Plan

KEY = "fusion.strategy"


def check_masks(plan: Plan) -> None:
    """Raise a `UserError` for masks that are missing or cannot be shared."""
    learner, scenario = plan.learner, plan.scenario
    name, those_that_do = scenario.fusion.strategy, "use 'supsup' or 'exssnet'"
    if learner is None:
        told = f"'{name}' needs [continual] with a learner that has masks; {those_that_do}"
        raise UserError(told, key=KEY)
    withheld = learner.configured_traits().withholds_masks
    if withheld is not None or not isinstance(learner, Phases):
        told = f"'{name}' exchanges masks, but '{learner.name}' {withheld}; {those_that_do}"
        raise UserError(told, key=KEY)
    local = scenario.training.local_epochs
    lengths = {span.last - span.first + 1 for course in plan.schedule.courses for span in course}
    for rounds in sorted(lengths):
        for round in range(rounds):
            epochs = range(round * local, (round + 1) * local)
            if len({learner.phase_of(epoch, rounds * local) for epoch in epochs}) > 1:
                raise UserError(
                    f"'{name}' averages masks between rounds, but '{learner.name}' fixes one in the middle of"
                    f" round {round + 1} of {rounds}; choose rounds_per_task, pace and mask_share so that the"
                    " mask phase ends with a round",
                    key=KEY,
                )


def check_backward(plan: Plan) -> None:
    """Raise a `UserError` for backward transfer without later clients or changeable old tasks."""
    strategy, learner, fusion = plan.strategy, plan.learner, plan.scenario.fusion
    reason, closed = None, None if learner is None else reopening_obstacle(learner)
    if learner is None:
        reason = "needs a stream of tasks: [continual]"
    elif fusion.knowledge_cache is None:
        reason = "needs fusion.knowledge_cache, which caches knowledge of finished tasks"
    elif plan.schedule.in_step:
        reason = (
            "needs clients that learn tasks at different times; use order = 'shuffled' or pace = 'uniform'"
        )
    elif strategy.capabilities.uses_local_loss or overrides_hook(strategy, "apply"):
        reason = f"not allowed: '{fusion.strategy}' changes local training on the present task only"
    elif closed is not None:
        reason = f"not allowed: '{learner.name}' {closed}"
    if reason is not None:
        raise UserError(reason, key="fusion.backward_transfer")


def check_orthogonal(plan: Plan, model: nn.Module) -> None:
    """Raise a `UserError` for a network with layers or statistics that cannot be protected."""
    key, learner = "fusion.orthogonal", plan.learner
    assert learner is not None
    check_layers("orthogonal", model, key=key)
    running = statistics_names(model)
    if running and not learner.traits.task_statistics:
        raise UserError(
            f"does not protect running statistics ('{running[0]}'), and the learner '{learner.name}' keeps"
            " only those of the last task; use a model without them, such as resnet8 with norm = 'group', or"
            " a learner that keeps them for every task, such as 'gpm'",
            key=key,
        )


def check_class_stream(plan: Plan) -> None:
    """Raise a `UserError` unless the stream is in lockstep with a head `class`."""
    continual, name = plan.scenario.continual, plan.scenario.fusion.strategy
    if continual is None:
        raise UserError(f"'{name}' needs a stream of tasks: [continual]", key=KEY)
    told = f"must be 'class' with '{name}', got"
    refuse_if(continual.head != "class", f"{told} '{continual.head}'", "continual.head")
    if not plan.schedule.in_step:
        raise UserError(
            f"'{name}' needs all clients at the same task; use order = 'same' and pace = 'lockstep', without"
            " late, pausing or leaving clients",
            key="continual.tasks",
        )
