"""What a learner is: how a client turns gradients into weight changes over a stream of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedkd.continual.context import LearnerContext
from fedkd.continual.episodes import Episode
from fedkd.continual.reopened import Reopened
from fedkd.continual.task_model import TaskModel
from fedkd.training.optimizer import OptimizerSpec

Tensors = dict[str, Tensor]
WEIGHTS = "weights"
"""The phase of learners that have only one."""


@dataclass(frozen=True)
class Step:
    """The training step that a penalty is asked for.

    Attributes:
        inputs: ``[B, *input_shape]`` the client's own samples, or transfer samples in distillation.
        model: The model that the loss was computed with, and with gradients.
        loss: The loss itself, with gradients: a penalty that must be weighed against it may take from it.
        labels: ``[B]`` int64 of own samples, positions among the units of each one's task; None in
            distillation.
        tasks: ``[B]`` int64, the task of each own sample; None in distillation.
    """

    inputs: Tensor
    model: TaskModel
    loss: Tensor
    labels: Tensor | None = None
    tasks: Tensor | None = None

    def outputs(self) -> Tensor:
        """Return all outputs ``[B, O]`` of the inputs, those the loss has seen."""
        return self.model.outputs(self.inputs)


class Learner:
    """Base of every learner: a frozen dataclass whose fields are its hyper-parameters.

    A learner says four things: the *effective parameters* of a forward pass for a task; a *penalty*; a
    *filter* on gradients; and what happens at the begin and end of a task. Training on private batches and
    distillation from guidance both go through it, so what it guarantees holds whatever the loss. The task is
    always an argument. Whatever it remembers lies in ``context.memory``.

    The whole of a new learner, in a file beside the scenario that says ``learner = "mine:Anchored"``::

        @dataclass(frozen=True)
        class Anchored(Learner):
            name: ClassVar[str] = "anchored"
            strength: Annotated[float, Field(ge=0, description="How hard old weights are held.")] = 1.0

            def penalty(self, context, step):
                if context.task == 0:
                    return None
                pairs = context.network.named_parameters()
                return self.strength * sum((p - context.memory[name]).square().sum() for name, p in pairs)

            def end_task(self, context):
                for name, p in context.network.named_parameters():
                    context.memory[name] = p.detach().clone()
    """

    name: ClassVar[str]
    """Name in scenarios and reports."""
    paper: ClassVar[str] = ""
    """Where the learner comes from."""
    source_note: ClassVar[str] = ""
    """How it differs from that paper, in one line."""
    isolates: ClassVar[bool] = False
    """Whether a task has weights of its own that no other client's may be averaged into."""
    scales_own_subspaces: ClassVar[bool] = False
    """Whether a task sees weights scaled within subspaces that the client has found for itself, which an
    average of several clients' weights does not fit."""
    begins_anew: ClassVar[bool] = False
    """Whether every task begins with the initial weights, which an average with clients that are in the
    middle of theirs would not be."""
    remembers_only: ClassVar[bool] = False
    """Whether nothing but `rehearsed` samples is trained on."""
    confines: ClassVar[bool] = False
    """Whether `filter` is a projection that the weights' changes must obey too. The updates of Adam, or of
    weight decay, leave the space that the gradients were projected to; so does momentum once the space has
    changed. They are projected once more, see `confine`."""
    follows_path: ClassVar[bool] = False
    """Whether `after_step` wants to know every step."""
    trains_masked_weights: ClassVar[bool] = False
    """Whether weights under a task's mask are trained once it is found, so that clients no longer have the
    same; of no account for a learner that has no masks."""
    task_statistics: ClassVar[bool] = False
    """Whether every task has its own running statistics in normalisation layers."""

    @classmethod
    def source(cls) -> str:
        """Return where the learner comes from and how it differs, for people; empty if it is fedkd's own."""
        return "; ".join(text for text in (cls.paper, cls.source_note) if text)

    @classmethod
    def overrides(cls, *names: str) -> bool:
        """Return whether the learner has a method of its own in the place of one of these."""
        return any(getattr(cls, name) is not getattr(Learner, name) for name in names)

    @property
    def trains_on_old_tasks(self) -> bool:
        """Whether the samples of a round's training are not the present task's alone."""
        return self.overrides("training_tasks", "rehearsed")

    @property
    def needs_boundaries(self) -> bool:
        """Whether the learner wants to know when a task begins and ends."""
        course = ("begin_task", "end_task", "phase_of", "begin_phase")
        return self.task_statistics or self.overrides(*course, "effective", "training_tasks", "rehearsed")

    @property
    def shapes_training(self) -> bool:
        """Whether a round trains on other samples, or by another loss, than without a learner."""
        return self.trains_on_old_tasks or self.overrides("criterion")

    @property
    def tells_tasks_apart(self) -> bool:
        """Whether the network computes something else for every task, so that it matters to be told which."""
        return self.task_statistics or self.overrides("effective")

    @property
    def answers_by_weights(self) -> bool:
        """Whether a network's answers depend on its weights and the task alone, not on what is remembered."""
        return not self.tells_tasks_apart and not self.overrides("answers", "outputs", "outputs_and_tasks")

    @property
    def leaves_steps_alone(self) -> bool:
        """Whether a training step is what it would be without the learner."""
        per_step = ("effective", "trainable", "penalty", "filter", "confine", "after_step")
        return not (self.follows_path or self.task_statistics or self.overrides(*per_step))

    # What it can work with ----------------------------------------------------------------------------

    def check(self, network: nn.Module) -> None:
        """Refuse a network that the learner cannot keep its word on.

        Raises:
            UserError: What the network has that the learner cannot deal with.
        """

    @property
    def superfluous(self) -> int:
        """Number of further output units, after those of the classes, that the network shall have."""
        return 0

    def prepare(self, context: LearnerContext) -> None:
        """Make the network what the learner needs before anything is trained or measured."""

    # The course of a task -----------------------------------------------------------------------------

    def begin_task(self, context: LearnerContext) -> None:
        """Get ready for ``context.task``, whose samples are ``context.samples()``."""

    def training_tasks(self, context: LearnerContext) -> Sequence[int]:
        """Return the tasks whose samples are trained on now: by default only the present one."""
        return (context.task,)

    def rehearsed(self, context: LearnerContext) -> Episode | None:
        """Return remembered samples that are trained on in the same batches; None: there are none."""
        return None

    def criterion(self, context: LearnerContext, outputs: Tensor, labels: Tensor, tasks: Tensor) -> Tensor:
        """Return the loss of own samples, a mean over them: by default their cross entropy.

        Args:
            context: The client's.
            outputs: All outputs, ``[B, O]`` or more columns.
            labels: ``[B]`` int64, positions among the units of each sample's task.
            tasks: ``[B]`` int64.
        """
        return context.cross_entropy(outputs, labels, tasks)

    def phase_of(self, epoch: int, epochs: int) -> str:
        """Return the phase that an epoch belongs to.

        Args:
            epoch: 0-based, counted over all rounds of the task.
            epochs: Of all rounds of the task together.
        """
        return WEIGHTS

    def begin_phase(self, context: LearnerContext) -> None:
        """Get ready for ``context.phase``, which has just begun; also called for the first one of a task."""

    def trainable(self, context: LearnerContext) -> Tensors:
        """Return the leaf tensors that an optimiser changes in the present phase, by name.

        By default the network's parameters; a tensor in ``context.memory`` may be one as well.
        """
        return {name: p for name, p in context.network.named_parameters() if p.requires_grad}

    def optimizer(self, context: LearnerContext, spec: OptimizerSpec) -> OptimizerSpec:
        """Return the optimiser of the present phase, given the scenario's."""
        return spec

    def end_task(self, context: LearnerContext) -> None:
        """Draw conclusions once everything about ``context.task`` has been learned, guidance included."""

    def report(self, context: LearnerContext) -> dict[str, float]:
        """Return figures about the last task that belong in the metrics, by name; none by default."""
        return {}

    # Between client and server ------------------------------------------------------------------------

    def tell(self, context: LearnerContext, tasks: Sequence[int]) -> Tensors:
        """Return what a strategy that is made for the learner may send, by names of the learner's choosing.

        Args:
            context: Its ``task`` has just been trained on.
            tasks: Those that the strategy asks about besides, begun all of them.
        """
        return {}

    def hear(self, context: LearnerContext, told: Tensors) -> None:
        """Take what such a strategy has for the learner, ahead of a training on own samples."""

    # A step -------------------------------------------------------------------------------------------

    def effective(self, context: LearnerContext, task: int) -> Tensors:
        """Return what stands in for the network's parameters in a forward pass for a task, by name.

        Parameters that are not named are the network's own. Called before every step for the present task,
        with gradients, and for evaluation of any task, those not met yet included.
        """
        return {}

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return what is added to the loss, a scalar; None: nothing."""
        return None

    def filter(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Return what becomes of the gradients of `trainable` tensors, same names and shapes.

        It may change them in place. Those of tensors that the loss does not depend on are missing.
        """
        return gradients

    def confine(self, context: LearnerContext, changes: Tensors) -> Tensors:
        """Return what becomes of a step's changes of `trainable` tensors, if the learner `confines`.

        By default what becomes of gradients. A change that is not returned stays as the optimiser made it.
        """
        return self.filter(context, changes)

    def reopen(self, context: LearnerContext, task: int) -> Reopened | None:
        """Return an old task opened for guidance (federated backward transfer); None: none of it may change.

        Whatever changes then is the task's own: what the learner promises of every other one still holds. By
        default the learner's usual penalty and filter are what there is to be obeyed.

        Args:
            context: Its ``task`` is the present one.
            task: One that has ended.
        """
        return Reopened(self, context, task)

    @property
    def keeps_closed(self) -> str | None:
        """Return why no old task is ever reopened, to be told after the learner's name; None: some may be."""
        if self.trains_on_old_tasks:
            return "trains on the samples of old tasks anyway"
        if type(self).reopen is Learner.reopen and (self.isolates or self.confines):
            return "holds what old tasks use, and does not tell what one of them alone depends on"
        return None

    @property
    def withholds_masks(self) -> str | None:
        """Return why its masks say nothing to other clients, to be told after the learner's name.

        None: they do, as all are over weights that clients begin with; then it is a `SupermaskLearner`.
        """
        return "has no masks over weights that all clients begin with"

    def after_step(self, context: LearnerContext, before: Tensors, gradients: Tensors) -> None:
        """Take notice of a step, if the learner `follows_path`.

        Args:
            context: The weights are those after the step.
            before: The trainable tensors before it.
            gradients: The gradients that the optimiser was given, penalty included.
        """

    # Answers ------------------------------------------------------------------------------------------

    def answers(self, context: LearnerContext, model: TaskModel, x: Tensor) -> Tensor:
        """Return what stands for all outputs ``[B, O]`` where the client is evaluated: by default those.

        The largest of them, among the units that are asked for, is the answer. What the client tells others,
        and what is distilled into it, are always the outputs themselves.

        Args:
            context: The client's.
            model: In evaluation mode: of the samples' own task where the task is given, else of the last one
                met.
            x: ``[B, *input_shape]``.
        """
        return model.outputs(x)

    # Without the task ---------------------------------------------------------------------------------

    def outputs(self, context: LearnerContext, model: TaskModel, x: Tensor) -> Tensor:
        """Return what stands for all outputs ``[B, O]`` of samples whose task is not given.

        By default `answers` with the model of the last task met. The samples' own task must play no part.

        Args:
            context: Its ``task`` is the last one met.
            model: The model of that task, in evaluation mode.
            x: ``[B, *input_shape]``.
        """
        with torch.no_grad():
            return self.answers(context, model, x)

    def outputs_and_tasks(
        self, context: LearnerContext, model: TaskModel, x: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return `outputs`, and which tasks each sample was taken to be from; None: nothing was inferred.

        Whoever infers a task says more than the outputs, and should override this in place of `outputs`.

        Args:
            context: As for `outputs`.
            model: As for `outputs`.
            x: ``[B, *input_shape]``.

        Returns:
            ``[B, O]``, and ``[B, T]`` bool: several of a row where the learner does not tell tasks apart.
        """
        return self.outputs(context, model, x), None
