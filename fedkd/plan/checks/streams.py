"""Requirements of strategies and keys of `[fusion]` on the stream of tasks."""

from torch import nn

from fedkd.continual import Phases, check_layers, reopening_obstacle, statistics_names
from fedkd.errors import UserError, refuse_if
from fedkd.fusion import overrides_hook
from fedkd.plan.plan import Plan

KEY = "fusion.strategy"


def check_masks(plan: Plan) -> None:
    """Refuse to exchange masks that are missing or not shared."""
    learner, scenario = plan.learner, plan.scenario
    name, those_that_do = scenario.fusion.strategy, "use 'supsup' or 'exssnet'"
    if learner is None:
        told = f"'{name}' exchanges the masks of a stream's learner, with no [continual]; {those_that_do}"
        raise UserError(told, key=KEY)
    withheld = learner.configured_traits().withholds_masks
    if withheld is not None or not isinstance(learner, Phases):
        told = f"'{name}' exchanges masks, and '{learner.name}' {withheld}; {those_that_do}"
        raise UserError(told, key=KEY)
    local = scenario.training.local_epochs
    lengths = {span.last - span.first + 1 for course in plan.schedule.courses for span in course}
    for rounds in sorted(lengths):
        for round in range(rounds):
            epochs = range(round * local, (round + 1) * local)
            if len({learner.phase_of(epoch, rounds * local) for epoch in epochs}) > 1:
                raise UserError(
                    f"'{name}' has clients agree on masks between rounds, and '{learner.name}' settles one in"
                    f" the middle of round {round + 1} of {rounds}; choose rounds_per_task, pace and"
                    " mask_share so that masks are found in whole rounds",
                    key=KEY,
                )


def check_backward(plan: Plan) -> None:
    """Refuse backward transfer without later clients, or without anything that may change."""
    strategy, learner, fusion = plan.strategy, plan.learner, plan.scenario.fusion
    reason, closed = None, None if learner is None else reopening_obstacle(learner)
    if learner is None:
        reason = "needs a stream of tasks, of which some are old: [continual]"
    elif fusion.knowledge_cache is None:
        reason = (
            "needs fusion.knowledge_cache, which keeps what clients knew of the tasks that they have left"
        )
    elif plan.schedule.in_step:
        reason = (
            "needs clients that meet tasks later than others, such as by order = 'shuffled' or"
            " pace = 'uniform'; here all go on at once, and nobody knows more of an old task"
        )
    elif strategy.capabilities.uses_local_loss or overrides_hook(strategy, "apply"):
        reason = f"not allowed: guidance of '{fusion.strategy}' shapes what clients keep for the present task"
    elif closed is not None:
        reason = f"not allowed: '{learner.name}' {closed}"
    if reason is not None:
        raise UserError(reason, key="fusion.backward_transfer")


def check_orthogonal(plan: Plan, model: nn.Module) -> None:
    """Refuse a network that computes with more than protected weights."""
    key, learner = "fusion.orthogonal", plan.learner
    assert learner is not None
    check_layers("orthogonal", model, key=key)
    running = statistics_names(model)
    if running and not learner.traits.task_statistics:
        raise UserError(
            f"protects weights, but the running statistics of normalisation ('{running[0]}') are those of the"
            f" last task alone with learner '{learner.name}'; use a model without any, such as resnet8 with"
            " norm = 'group', or a learner that keeps them for every task, such as 'gpm'",
            key=key,
        )


def check_class_stream(plan: Plan) -> None:
    """Refuse all but streams in lockstep with a head `class`."""
    continual, name = plan.scenario.continual, plan.scenario.fusion.strategy
    if continual is None:
        raise UserError(f"'{name}' is about the classes of earlier tasks; it needs [continual]", key=KEY)
    told = f"must be 'class' with '{name}', which keeps the classes of all tasks in one head, got"
    refuse_if(continual.head != "class", f"{told} '{continual.head}'", "continual.head")
    if not plan.schedule.in_step:
        raise UserError(
            f"'{name}' needs all clients at the same task: what stands in for old tasks is made when all of"
            " them have ended one; use order = 'same' and pace = 'lockstep', with nobody late, on a break or"
            " leaving",
            key="continual.tasks",
        )
