"""The base class of continual learners: every hook, and the traits that a learner declares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from fedkd.continual.context import LearnerContext
from fedkd.continual.replay.buffer import Episode
from fedkd.continual.task_model import TaskModel

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class LearnerTraits:
    """Properties of a learner that decide its compatible strategies and scenarios."""

    isolates: bool = False
    """Each task has weights of its own, which an average over clients would overwrite."""
    scales_own_subspaces: bool = False
    """Each client scales weights within subspaces of its own, so that averaged weights do not fit."""
    begins_anew: bool = False
    """Each task begins with the initial weights."""
    replays_only: bool = False
    """All training samples come from the buffer."""
    retrains_old_tasks: bool = False
    """Old tasks' training sets are trained on again (`Batch.tasks`)."""
    projects_updates: bool = False
    """`project` is a projection that updates must obey too: Adam, weight decay and momentum leave its space.
    Updates then pass `project_update`."""
    trains_masked_weights: bool = False
    """Weights under a task's mask are trained, so that clients no longer share them."""
    task_statistics: bool = False
    """Each task has its own running statistics in normalisation layers."""
    needs_boundaries: bool | None = None
    """The learner needs the start and end of each task; None: its hooks decide."""
    closed: str | None = None
    """Reason why no old task is reopened, as a predicate of the learner; None: its hooks decide."""
    withholds_masks: str | None = "has no masks over weights that all clients begin with"
    """Reason why masks are useless to other clients; None: they are useful, of a `SupermaskLearner`."""


class Batch(NamedTuple):
    """Samples of local training: their tasks, and buffer samples that join each batch."""

    tasks: Sequence[int]
    replayed: Episode | None = None


@dataclass(frozen=True)
class Step:
    """The training step of a penalty.

    Attributes:
        inputs: ``[B, *input_shape]``, private samples or, in distillation, transfer samples.
        model: The model of the loss, with gradients.
        loss: With gradients; a penalty may subtract a share of it.
        labels: ``[B]`` int64, positions among the units of each sample's task; None in distillation.
        tasks: ``[B]`` int64; None in distillation.
    """

    inputs: Tensor
    model: TaskModel
    loss: Tensor
    labels: Tensor | None = None
    tasks: Tensor | None = None

    def outputs(self) -> Tensor:
        """Return all outputs ``[B, O]`` of the inputs, those of the loss."""
        return self.model.outputs(self.inputs)


class Learner:
    """Base of every learner: a frozen dataclass whose fields are its hyper-parameters.

    Local training and distillation call the same hooks, so a guarantee holds for both losses. State lies in a
    `LearnerState` record over ``context.memory``. Mixins add further hooks: `TaskParameters`, `Phases`,
    `StepObserver`, `OwnLoss`, `TaskInference`, `StateExchange` (`fedkd.continual.mixins`), `Reopenable`
    (`fedkd.continual.reopened`) and `FastSteps` (`fedkd.continual.fast_steps`).

    A complete learner, in a file beside a scenario with ``learner = "mine:Anchored"``::

        class Anchors(LearnerState):
            anchor = Table()

        @dataclass(frozen=True)
        class Anchored(Learner):
            name: ClassVar[str] = "anchored"
            strength: Annotated[float, Field(ge=0, description="Weight of the penalty.")] = 1.0

            def penalty(self, context, step):
                if context.task == 0:
                    return None
                pairs, anchor = context.network.named_parameters(), Anchors(context).anchor
                return self.strength * sum((p - anchor[name]).square().sum() for name, p in pairs)

            def end_task(self, context):
                for name, p in context.network.named_parameters():
                    Anchors(context).anchor[name] = p.detach().clone()
    """

    name: ClassVar[str]
    """Name in scenarios and reports."""
    paper: ClassVar[str] = ""
    """Source of the method."""
    source_note: ClassVar[str] = ""
    """Departure from the paper, in one line."""
    traits: ClassVar[LearnerTraits] = LearnerTraits()

    @classmethod
    def source(cls) -> str:
        """Return paper and departure in words; empty for fedkd's own methods."""
        return "; ".join(text for text in (cls.paper, cls.source_note) if text)

    @classmethod
    def overrides(cls, *names: str) -> bool:
        """Return whether the class replaces one of the base's hooks."""
        return any(getattr(cls, name) is not getattr(Learner, name) for name in names)

    def configured_traits(self) -> LearnerTraits:
        """Return the traits under the chosen hyper-parameters."""
        return self.traits

    def check(self, network: nn.Module) -> None:
        """Raise `UserError` for an unsuitable network."""

    def prepare(self, context: LearnerContext) -> None:
        """Change the network once, before any training or evaluation."""

    def begin_task(self, context: LearnerContext) -> None:
        """Get ready for ``context.task``, with samples ``context.samples()``."""

    def batch(self, context: LearnerContext) -> Batch:
        """Return the samples of local training: by default those of the present task."""
        return Batch((context.task,))

    def trainable(self, context: LearnerContext) -> Tensors:
        """Return the leaf tensors of the optimiser, by name: parameters, or tensors of the memory."""
        return {name: p for name, p in context.network.named_parameters() if p.requires_grad}

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return a scalar that is added to the loss; None: nothing."""
        return None

    def project(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Return the new gradients of `trainable` tensors, same names and shapes.

        The hook may change gradients in place. Tensors unused by the loss have no gradient.
        """
        return gradients

    def project_update(self, context: LearnerContext, changes: Tensors) -> Tensors:
        """Return the new changes of `trainable` tensors in a step, with the trait `projects_updates`.

        Omitted changes stay. By default changes are projected like gradients.
        """
        return self.project(context, changes)

    def end_task(self, context: LearnerContext) -> None:
        """Finish after the last training and distillation of ``context.task``."""

    def report(self, context: LearnerContext) -> dict[str, float]:
        """Return figures of the last task for the metrics, by name."""
        return {}

    def predict(self, context: LearnerContext, model: TaskModel, x: Tensor) -> Tensor:
        """Return the outputs ``[B, O]`` of an evaluation; the largest of the permitted units wins.

        Uploads and distillation use the model's own outputs. The model is in evaluation mode, for the
        samples' task if it is given, otherwise for the last task.
        """
        return model.outputs(x)
