"""iCaRL: distillation with exemplars, and classification by their nearest mean."""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Batch, Learner, Step
from fedkd.continual.mixins import OwnLoss
from fedkd.continual.regularisation.teacher import TeacherState, keep_teacher, taught
from fedkd.continual.replay import buffer as episodes
from fedkd.continual.replay.buffer import Episode
from fedkd.continual.seen_classes import mark_seen, note_present, noted_units, present_units, seen_units
from fedkd.continual.task_model import TaskModel
from fedkd.errors import UserError
from fedkd.models import evaluation_mode
from fedkd.plugins import hyperparameters

UNITS = "units"
MEANS = "means"
FEATURES_BATCH = 256
FARTHER = 5.0
"""More than the squared distance of any two vectors of length 1."""


@hyperparameters
class ICaRL(OwnLoss, Learner):
    """Train with exemplars of old classes, and classify by the nearest mean of exemplars.

    ::

        train:   own samples and all exemplars in the same batches; g_y(x) = σ(z_y(x)) for every unit y,
                 q = σ(z / T) of the network as it was when the task began, δ_y = 1 if x is of class y, else 0
                 − mean_x [ Σ_{new y} ( δ_y log g_y + (1 − δ_y) log(1 − g_y) )
                          + Σ_{old y} ( q_y log g_y + (1 − q_y) log(1 − g_y) ) ]
        end:     φ(x) = features / ‖features‖; of each new class, with the mean μ of its φ, one exemplar
                 after the other:  p_k = argmin_x ‖ μ − (φ(x) + Σ_{j<k} φ(p_j)) / k ‖     (herding);
                 every class keeps K / (classes so far) of its exemplars, the first ones
        answer:  argmin_y ‖ φ(x) − μ_y ‖,  μ_y the mean of φ over the exemplars of y, with length 1

    Herding aims at the mean μ itself, which the paper scales to length 1. Means are computed anew for every
    evaluation; during a task, some of its own samples replace exemplars. A unit is old if a class of an
    earlier task has it and no present sample does. Of several means of a unit, the nearest counts.

    Uploads are the logits z, and guidance is distilled into them, with Σ_{old y} added.
    """

    name: ClassVar[str] = "icarl"
    paper: ClassVar[str] = (
        "Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, CVPR 2017, arXiv"
        " 1611.07725"
    )
    source_note: ClassVar[str] = "herding aims at the plain mean, which the paper scales to length 1"

    memory_size: Annotated[int, Field(ge=1)] = 1000
    """K: exemplars of all classes together; 2,000 for 100 classes of CIFAR in the paper. Classes beyond K
    have none, and are never the answer."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """T: of the old network's outputs alone; 1 in the paper, 2 in the programs of van de Ven et al. (Nature
    Machine Intelligence 2022). Above 1 it is less sure of what it says of classes that it has not met."""

    def check(self, network: nn.Module) -> None:
        """Refuse a network without a method `features`."""
        if not hasattr(network, "features"):
            raise UserError(
                "'icarl' compares penultimate features, and the model has no method `features`",
                key="continual.learner",
            )

    def begin_task(self, context: LearnerContext) -> None:
        """Store the network for q, and note the new classes."""
        if bool(seen_units(context).any()):
            keep_teacher(context)
        note_present(context)

    def batch(self, context: LearnerContext) -> Batch:
        return Batch((context.task,), episodes.everything(context))

    def end_task(self, context: LearnerContext) -> None:
        """Choose exemplars of the new classes, and drop some of old ones."""
        TeacherState(context).teacher.drop()
        mark_seen(context, present_units(context))
        x, y = context.samples()
        if len(y):
            with evaluation_mode(context.network):
                phi = _directions(TaskModel(context.network, None), x)
            share, chosen = self._share(context, y), []
            for label in y.unique():
                own = (y == label).nonzero()[:, 0]
                chosen.append(own[herding(phi[own], min(share, len(own)))])
            order = torch.cat(chosen)
            order = order[episodes.by_rank(y[order])]
            episodes.remember(context, self.memory_size, order, equal="classes")

    def loss(self, context: LearnerContext, outputs: Tensor, labels: Tensor, tasks: Tensor) -> Tensor:
        """Return the loss of the units of new classes."""
        wanted = F.one_hot(context.unit_of(labels, tasks), context.outputs)
        return _binary(outputs, wanted.float(), _units(context)[0])

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return the loss of the units of old classes."""
        old = _units(context)[1]
        if not TeacherState(context).teacher or not len(old):
            return None
        return _binary(step.outputs(), (taught(context, step.inputs) / self.temperature).sigmoid(), old)

    def predict(self, context: LearnerContext, model: TaskModel, x: Tensor) -> Tensor:
        """Return ``−‖φ(x) − μ_y‖²`` for every unit ``[B, O]``, −5 for those of classes without exemplars."""
        if MEANS not in model.notes:
            model.notes[MEANS] = self._means(context, model)
        found: tuple[Tensor, Tensor] | None = model.notes[MEANS]
        if found is None:
            return model.outputs(x)
        means, units = found
        near = -(_directions(model, x)[:, None] - means).square().sum(dim=2)
        answers = torch.full((len(x), context.outputs), -FARTHER, device=x.device)
        return answers.scatter_reduce(1, units.expand(len(x), -1), near, "amax")

    def _means(self, context: LearnerContext, model: TaskModel) -> tuple[Tensor, Tensor] | None:
        """Return the means ``[G, F]`` of all tasks' classes, and their units ``[G]``, if there are any."""
        held = episodes.everything(context)
        parts = [] if held is None else [held]
        if context.task >= 0 and (held is None or not bool((held.tasks == context.task).any())):
            parts.append(self._stand_ins(context))
        every = Episode(*map(torch.cat, zip(*parts, strict=True))) if parts else None
        if every is None or not len(every.labels):
            return None
        pairs, group = torch.stack([every.tasks, every.labels], dim=1).unique(dim=0, return_inverse=True)
        phi = _directions(model, every.samples)
        sums = torch.zeros(len(pairs), phi.shape[1], device=phi.device).index_add_(0, group, phi)
        return F.normalize(sums, dim=1), context.unit_of(pairs[:, 1], pairs[:, 0])

    def _share(self, context: LearnerContext, labels: Tensor) -> int:
        """Return the number of exemplars per class, those of the present labels included."""
        held = episodes.everything(context)
        old = 0 if held is None else len(torch.stack([held.tasks, held.labels], dim=1).unique(dim=0))
        return -(-self.memory_size // max(old + len(labels.unique()), 1))

    def _stand_ins(self, context: LearnerContext) -> Episode:
        """Return samples of the present task in place of its later exemplars."""
        x, y = context.samples()
        number = self._share(context, y) * len(y.unique())
        some = episodes.precedence(y, context.generator("stand-ins"))[:number]
        return Episode(x[some], y[some].long(), torch.full((len(some),), context.task, device=context.device))


def herding(phi: Tensor, number: int) -> Tensor:
    """Return the places ``[number]`` of the vectors of `phi` ``[n, F]`` chosen by herding, none twice.

    Each is the best next one to bring their mean near that of all.
    """
    mean, total = phi.mean(dim=0), torch.zeros_like(phi[0])
    lengths = phi.square().sum(dim=1)
    chosen = torch.zeros(number, dtype=torch.int64, device=phi.device)
    for k in range(number):
        # ‖μ − (φ + S) / (k+1)‖² up to a factor and a constant.
        distance = lengths - 2.0 * (phi @ ((k + 1) * mean - total))
        distance[chosen[:k]] = torch.inf
        chosen[k] = distance.argmin()
        total = total + phi[chosen[k]]
    return chosen


def _directions(model: TaskModel, x: Tensor) -> Tensor:
    """Return the features ``[n, F]`` of samples, with length 1, without gradients."""
    with torch.no_grad():
        parts = [model.features(part).flatten(1).float() for part in x.split(FEATURES_BATCH)]
    return F.normalize(torch.cat(parts), dim=1)


def _units(context: LearnerContext) -> tuple[Tensor, Tensor]:
    """Return the units ``[·]`` of the present task's classes, and the old ones."""

    def found() -> tuple[Tensor, Tensor]:
        present = noted_units(context)
        return present.nonzero()[:, 0], (seen_units(context) & ~present).nonzero()[:, 0]

    return context.once(UNITS, found)


def _binary(outputs: Tensor, wanted: Tensor, units: Tensor) -> Tensor:
    """Return the binary cross entropy of some units: a sum over them, a mean over samples."""
    logits, targets = outputs[:, units].float(), wanted[:, units]
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(outputs)
