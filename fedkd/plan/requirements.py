"""Whether a scenario's clients and data can do what its fusion strategy needs, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fedkd.continual.learner import Learner
from fedkd.continual.learning import TaskLearning
from fedkd.continual.statistics import statistics_names
from fedkd.continual.subspace import check_layers
from fedkd.data.budget import check_fits
from fedkd.data.federated import FederatedData
from fedkd.data.load import Data, first_task
from fedkd.data.stream import FederatedStream
from fedkd.errors import FedkdError, UserError, described
from fedkd.fusion.client_half import ClientHalf
from fedkd.fusion.strategy import FusionStrategy
from fedkd.models.build import blank_inputs, build_model
from fedkd.models.mode import predicting
from fedkd.plan.checks import check_one_architecture
from fedkd.plan.part_checks import check_parts, check_three_classes
from fedkd.plan.plan import Plan
from fedkd.plugins import contained
from fedkd.randomness import numpy_generator
from fedkd.scenario.schema import ClientGroup, Scenario

KEY = "fusion.strategy"


def check_requirements(plan: Plan, data: Data, models: Sequence[Any]) -> None:
    """Refuse a strategy that the scenario's clients or data cannot serve.

    Args:
        plan: What to simulate.
        data: The federation's data.
        models: One model of every client group, in order.

    Raises:
        UserError: What is missing, and whose model or which data lacks it.
    """
    scenario, needs = plan.scenario, plan.strategy.needs
    name = scenario.fusion.strategy
    if plan.strategy.pools and plan.learner is not None:
        raise UserError(
            f"'{name}' knows no stream of tasks; use the learner 'joint', which trains on all tasks at once",
            key=KEY,
        )
    if plan.strategy.trains_in_phases and plan.learner is not None:
        raise UserError(
            f"'{name}' trains parts of a model in phases of its own, and in a stream of tasks a learner says"
            " what is trained when; use 'fedper', which trains both parts together",
            key=KEY,
        )
    for group, model in zip(scenario.clients, models, strict=True):
        if needs & {"gradients", "weights"} and not isinstance(model, nn.Module):
            what = "exchanges weights" if "weights" in needs else "shapes training by gradients"
            raise UserError(f"'{name}' {what}, but model '{group.model}' is not a network", key=KEY)
        if "features" in needs and not (hasattr(model, "features") and hasattr(model, "head")):
            raise UserError(
                f"'{name}' compares penultimate features; model '{group.model}' has no `features` and `head`",
                key=KEY,
            )
        if "linear_head" in needs and not _has_linear_head(model):
            raise UserError(
                f"'{name}' needs heads that are one linear layer with biases;"
                f" that of model '{group.model}' is not",
                key=KEY,
            )
    if plan.strategy.has_auxiliaries and plan.learner is not None:
        raise UserError(
            f"'{name}' has clients train networks besides their models, which a learner of a stream of tasks"
            " knows nothing of; use a strategy that exchanges predictions",
            key=KEY,
        )
    if "equal_features" in needs:
        _check_feature_widths(scenario, data, models)
    if "linear_head" in needs and plan.learner is not None:
        raise UserError(
            f"'{name}' gives clients a head for all classes, and in a stream of tasks heads are the learner's"
            " business; use 'fedproto' or a strategy that exchanges predictions",
            key=KEY,
        )
    if "masks" in needs:
        _check_masks(plan)
    if scenario.fusion.rehearse > 0 and not plan.strategy.teaches_targets:
        raise UserError(
            f"must be 0 with '{name}', whose guidance is no targets of transfer samples that a client could"
            f" rehearse, got {scenario.fusion.rehearse:g}",
            key="fusion.rehearse",
        )
    if scenario.fusion.bank is not None:
        _check_bank(plan)
    if "one_architecture" in needs:
        what = "averages masks" if "masks" in needs else "averages parameters"
        check_one_architecture(scenario, what)
    if "parts" in needs:
        check_parts(scenario, models, alike="like_heads" in needs)
    if "three_classes" in needs:
        check_three_classes(name, data)
    if "plain_sgd" in needs:
        _check_plain_sgd(scenario)
    if "class_stream" in needs:
        _check_class_stream(plan)
    if "normalised_samples" in needs:
        _check_generated(plan, data)
    if "transfer_labels" in needs and first_task(data).transfer_y is None:
        raise UserError(
            f"'{name}' needs the labels of the transfer set on the server, which only"
            ' data.transfer.source = "holdout" has',
            key=KEY,
        )
    if plan.strategy.server_model is not None:
        _check_server_model(plan, first_task(data))
    if plan.strategy.pretrain_epochs > 0:
        _check_pretraining(plan, first_task(data), models)
    if scenario.fusion.backward:
        _check_backward(plan)
    if scenario.fusion.orthogonal is not None:
        _check_orthogonal(plan, models[0])
    partner = plan.strategy.learner
    if partner is not None and (plan.learner is None or plan.learner.name != partner):
        raise UserError(
            f"'{name}' exchanges what the learner '{partner}' keeps of a stream of tasks; set"
            f' continual.learner = "{partner}"',
            key=KEY,
        )
    if plan.learner is not None:
        _check_learner(plan.learner, plan, data, models)
    if scenario.faults.poisoned > 0 and "weights" in needs and scenario.faults.poison == "imitation":
        raise UserError(
            f"'imitation' is for clients that upload predictions; with '{name}' use 'random' or 'flipped'",
            key="faults.poison",
        )


def _has_linear_head(model: Any) -> bool:
    head = getattr(model, "head", None)
    return isinstance(head, nn.Linear) and head.bias is not None


def _check_feature_widths(scenario: Scenario, data: Data, models: Sequence[Any]) -> None:
    """Refuse features of several widths where they have to be compared."""
    inputs, widths = blank_inputs(2, data.input_shape, data.input_dtype), []
    for model in models:
        with predicting(model):
            widths.append(model.features(inputs).flatten(1).shape[1])
    for group, width in zip(scenario.clients, widths, strict=True):
        if width != widths[0]:
            first = scenario.clients[0].model
            raise UserError(
                f"'{scenario.fusion.strategy}' needs models whose features are equally wide, got {widths[0]}"
                f" ('{first}') and {width} ('{group.model}')",
                key="clients.model",
            )


def _check_bank(plan: Plan) -> None:
    """Refuse to keep what could not be fused with anything later."""
    strategy, scenario = plan.strategy, plan.scenario
    reason = None
    if not isinstance(strategy, FusionStrategy) or "weights" in strategy.needs:
        reason = "exchanges weights, which are of no task and soon out of date"
    elif strategy.sends == "nothing":
        reason = "sends nothing that could be kept"
    elif "masks" in strategy.needs and plan.learner is not None and plan.learner.trains_masked_weights:
        reason = f"hears no more of a mask once '{plan.learner.name}' has settled it"
    else:
        generator = numpy_generator(scenario.seed, "request", round=1)
        if strategy.request(scenario.data.transfer.size, {}, generator) is not None:
            reason = "asks for other transfer samples every round, which old predictions are not about"
    if reason is not None:
        raise UserError(f"not allowed: '{scenario.fusion.strategy}' {reason}", key="fusion.bank")


def _check_masks(plan: Plan) -> None:
    """Refuse to exchange masks where there are none, or where they mean something else to every client."""
    learner, scenario = plan.learner, plan.scenario
    name, those_that_do = scenario.fusion.strategy, "use 'supsup' or 'exssnet'"
    if learner is None:
        raise UserError(
            f"'{name}' exchanges the masks of a stream's learner, with no [continual]; {those_that_do}",
            key=KEY,
        )
    if learner.withholds_masks is not None:
        raise UserError(
            f"'{name}' exchanges masks, and '{learner.name}' {learner.withholds_masks}; {those_that_do}",
            key=KEY,
        )
    local = scenario.training.local_epochs
    lengths = {span.last - span.first + 1 for course in plan.schedule.courses for span in course}
    for rounds in sorted(lengths):
        for round in range(rounds):
            epochs = range(round * local, (round + 1) * local)
            if len({learner.phase_of(epoch, rounds * local) for epoch in epochs}) > 1:
                raise UserError(
                    f"'{name}' has clients agree on masks between rounds, and '{learner.name}' settles one in"
                    f" the middle of round {round + 1} of {rounds}; choose rounds_per_task, the clock and"
                    " mask_share so that masks are found in whole rounds",
                    key=KEY,
                )


def _check_backward(plan: Plan) -> None:
    """Refuse to teach old tasks where there is nobody to teach, or nothing that may change."""
    strategy, learner, fusion = plan.strategy, plan.learner, plan.scenario.fusion
    reason = None
    if learner is None:
        reason = "needs a stream of tasks, of which some are old: [continual]"
    elif fusion.bank is None:
        reason = "needs fusion.bank, which keeps what clients knew of the tasks that they have left"
    elif plan.schedule.in_step:
        reason = (
            "needs clients that meet tasks later than others, such as by order = 'shuffled' or"
            " clock = 'uniform'; here all go on at once, and nobody knows more of an old task"
        )
    elif strategy.teaches_locally or type(strategy).apply is not ClientHalf.apply:
        reason = f"not allowed: guidance of '{fusion.strategy}' shapes what clients keep for the present task"
    elif learner.keeps_closed is not None:
        reason = f"not allowed: '{learner.name}' {learner.keeps_closed}"
    if reason is not None:
        raise UserError(reason, key="fusion.backward")


def _check_orthogonal(plan: Plan, model: nn.Module) -> None:
    """Refuse a network that computes with more than can be protected."""
    key, learner = "fusion.orthogonal", plan.learner
    assert learner is not None
    check_layers("orthogonal", model, key=key)
    running = statistics_names(model)
    if running and not learner.task_statistics:
        raise UserError(
            f"protects weights, but the running statistics of normalisation ('{running[0]}') are those of the"
            f" last task alone with learner '{learner.name}'; use a model without any, such as resnet8 with"
            " norm = 'group', or a learner that keeps them for every task, such as 'gpm'",
            key=key,
        )


def _check_server_model(plan: Plan, data: FederatedData) -> None:
    """Refuse a model of the server's that does not exist, or does not fit the data."""
    strategy, scenario = plan.strategy, plan.scenario
    group = ClientGroup(model=strategy.server_model or "", args=dict(strategy.server_args))
    try:
        build_model(
            group,
            data.input_shape,
            data.classes,
            seed=0,
            plugin_path=scenario.plugin_path,
            input_dtype=data.input_dtype,
        )
    except UserError as error:
        key = (error.key or "clients.model").replace("clients.", "fusion.server_", 1)
        raise UserError(error.message, key=key, file=error.file) from error


def _check_pretraining(plan: Plan, data: FederatedData, models: Sequence[Any]) -> None:
    """Refuse to train clients on transfer samples that have no labels, or none that they could learn."""
    key, source = "fusion.pretrain_epochs", plan.scenario.data.transfer.source
    given, labels = plan.strategy.pretrain_epochs, data.public_y
    if plan.learner is not None:
        raise UserError(f"must be 0 in a stream of tasks, got {given}", key=key)
    for group, model in zip(plan.scenario.clients, models, strict=True):
        if not isinstance(model, nn.Module):
            raise UserError(f"must be 0 as model '{group.model}' is not a network, got {given}", key=key)
    if labels is None or not len(labels):
        raise UserError(
            'must be 0 without a labelled transfer set, which data.transfer.source = "holdout" or another'
            f" data set gives, got {given} with '{source}'",
            key=key,
        )
    if labels.max() >= data.classes:
        raise UserError(
            f"must be 0 as labels of '{source}' go up to {labels.max()} and the clients' models have"
            f" {data.classes} outputs, got {given}",
            key=key,
        )


def _check_learner(learner: Learner, plan: Plan, data: Data, models: Sequence[Any]) -> None:
    """Refuse a learner that cannot keep its word with these models and this strategy."""
    assert isinstance(data, FederatedStream)
    scenario, needs = plan.scenario, plan.strategy.needs
    for index, (group, model) in enumerate(zip(scenario.clients, models, strict=True)):
        if not isinstance(model, nn.Module):
            raise UserError(
                f"'{learner.name}' changes gradients, but model '{group.model}' (clients.{index}) is not a"
                " network",
                key="continual.learner",
            )
        _prepare(learner, scenario, data, model)
    strategy = scenario.fusion.strategy
    made_for_it = plan.strategy.learner == learner.name
    if "weights" in needs and learner.isolates and not made_for_it:
        raise UserError(
            f"'{strategy}' averages weights, and '{learner.name}' gives each task weights of its own that"
            " averaging would overwrite; use a strategy that exchanges predictions",
            key=KEY,
        )
    if "weights" in needs and learner.scales_own_subspaces:
        raise UserError(
            f"'{strategy}' averages weights, and '{learner.name}' scales them for each task within subspaces"
            " that each client has found for itself, which an average does not fit; use a strategy that"
            " exchanges predictions",
            key=KEY,
        )
    if "weights" in needs and learner.begins_anew and not _in_step(plan):
        raise UserError(
            f"'{strategy}' averages weights, and '{learner.name}' begins every task with the initial ones:"
            " all clients have to be there in every round, at the same task",
            key=KEY,
        )
    assert scenario.continual is not None
    if not scenario.continual.tasks.boundaries and learner.needs_boundaries:
        raise UserError(
            f"must be true, as '{learner.name}' has to be told when a task begins or ends",
            key="continual.tasks.boundaries",
        )
    once = scenario.continual.online and not learner.remembers_only
    if once and scenario.training.local_epochs != 1:
        raise UserError(
            f"must be 1, as each sample is trained on once, got {scenario.training.local_epochs}",
            key="training.local_epochs",
        )
    if once and learner.overrides("training_tasks"):
        raise UserError(
            f"must be false, as '{learner.name}' trains on all samples so far again", key="continual.online"
        )
    if learner.remembers_only and scenario.training.early_stopping is not None:
        raise UserError(
            f"not allowed: '{learner.name}' trains on what it remembers alone, and keeps none of that apart",
            key="training.early_stopping",
        )
    if learner.remembers_only and scenario.fusion.private_weight > 0:
        raise UserError(
            f"must be 0, as '{learner.name}' trains on what it remembers alone, got"
            f" {scenario.fusion.private_weight:g}",
            key="fusion.private_weight",
        )
    if learner.remembers_only and scenario.fusion.rehearse > 0:
        raise UserError(
            f"must be 0, as '{learner.name}' trains on what it remembers alone, got"
            f" {scenario.fusion.rehearse:g}",
            key="fusion.rehearse",
        )
    if scenario.fusion.own_prior > 0:
        raise UserError(
            f"must be 0 in a stream of tasks, whose accuracies are those of the learner's outputs, got"
            f" {scenario.fusion.own_prior:g}",
            key="fusion.own_prior",
        )
    if plan.strategy.infers_from_guidance:
        raise UserError(
            'must be "model" in a stream of tasks, whose accuracies are those of the learner\'s outputs',
            key="fusion.inference",
        )
    if plan.strategy.answers_otherwise:
        raise UserError(
            f"'{strategy}' answers evaluations by another model than the client's, and in a stream of tasks"
            " they are about the learner's outputs; use a strategy that exchanges predictions",
            key=KEY,
        )
    if plan.strategy.shapes_local_loss and learner.shapes_training:
        what = "teaches the present task's classes" if plan.strategy.teaches_locally else "rehearses others"
        what = "has a loss of its own" if plan.strategy.steps_locally else what
        old = learner.trains_on_old_tasks
        why = "trains on the samples of earlier tasks too" if old else "has a loss of its own"
        raise UserError(
            f"'{strategy}' {what} in local training, where '{learner.name}'"
            f" {why}; use a strategy that exchanges predictions",
            key=KEY,
        )
    if plan.strategy.steps_locally and not made_for_it and (learner.isolates or learner.scales_own_subspaces):
        raise UserError(
            f"'{strategy}' has a loss of its own in local training, which sees models by their own weights,"
            f" and '{learner.name}' puts others in their place for each task",
            key=KEY,
        )
    if scenario.faults.poisoned > 0 and scenario.faults.poison == "imitation":
        raise UserError("'imitation' has no one distribution to imitate in a stream", key="faults.poison")


def _in_step(plan: Plan) -> bool:
    """Return whether all clients take part in every round, at the same task."""
    schedule, asked = plan.schedule, plan.schedule.participation.clients_per_round
    every = asked is None or asked >= schedule.clients
    return schedule.in_step and every and schedule.participation.dropout == 0.0


def _prepare(learner: Learner, scenario: Scenario, stream: FederatedStream, model: nn.Module) -> None:
    """Let a learner prepare a model, as it will for every client with one like it.

    Raises:
        UserError: The learner cannot work with the model, or some hyper-parameter does not suit it.
    """
    tasks = stream.client(0)

    def samples(task: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(tasks[task].train_x), torch.from_numpy(tasks[task].train_y)

    try:
        with contained():
            TaskLearning(
                learner,
                model,
                [task.units for task in stream],
                stream.outputs,
                samples,
                seed=scenario.seed,
                client=0,
                batch_size=scenario.training.batch_size,
            )
    except FedkdError:
        raise
    except Exception as error:
        told = f"'{learner.name}' raised {described(error)} when it was to prepare a model"
        raise UserError(told, key="continual.learner") from error


def _check_class_stream(plan: Plan) -> None:
    """Refuse whatever is no stream that all clients learn in step, in which classes tell tasks apart."""
    continual, name = plan.scenario.continual, plan.scenario.fusion.strategy
    if continual is None:
        raise UserError(f"'{name}' is about the classes of earlier tasks; it needs [continual]", key=KEY)
    if continual.head != "class":
        raise UserError(
            f"must be 'class' with '{name}', which keeps the classes of all tasks in one head, got"
            f" '{continual.head}'",
            key="continual.head",
        )
    if not plan.schedule.in_step:
        raise UserError(
            f"'{name}' needs all clients at the same task: what stands in for old tasks is made when all of"
            " them have ended one; use order = 'same' and clock = 'lockstep', with nobody late, on a break or"
            " leaving",
            key="continual.tasks",
        )


def _check_generated(plan: Plan, data: Data) -> None:
    """Refuse samples that cannot be made without having seen one, or not be kept."""
    name, count, clients = plan.scenario.fusion.strategy, plan.strategy.samples, plan.scenario.data.clients
    if np.issubdtype(data.input_dtype, np.integer):
        raise UserError(
            f"'{name}' generates samples of real numbers; those of the data are integers", key=KEY
        )
    if not plan.scenario.data.normalise:
        raise UserError(
            f"must be true with '{name}', which generates samples of mean 0 and variance 1",
            key="data.normalise",
        )
    if len(data.input_shape) not in (1, 3):
        shape = "×".join(map(str, data.input_shape))
        raise UserError(f"'{name}' generates vectors and images; samples are of {shape}", key=KEY)
    size = 4 * count * math.prod(data.input_shape) * (clients + 1)
    check_fits(size, f"{count:,} samples at each of {clients:,} clients take", key="fusion.samples")


def _check_plain_sgd(scenario: Scenario) -> None:
    training = scenario.training
    reason = f"'{scenario.fusion.strategy}' takes a client's way divided by steps × lr for its mean gradient"
    if training.optimizer != "sgd":
        raise UserError(f"must be 'sgd', got '{training.optimizer}': {reason}", key="training.optimizer")
    if training.momentum:
        raise UserError(f"must be 0, got {training.momentum:g}: {reason}", key="training.momentum")
    if training.early_stopping is not None:
        raise UserError(
            f"not allowed, because it goes back to earlier weights: {reason}", key="training.early_stopping"
        )
