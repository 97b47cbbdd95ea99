"""Base of supermask learners: fixed or partly trained weights, and a mask per task."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedkd.continual.context import LearnerContext
from fedkd.continual.fast_steps import FastSteps
from fedkd.continual.learner import Learner, LearnerTraits, Step, Tensors
from fedkd.continual.masks import kkt, masks
from fedkd.continual.masks.mask_memory import MaskMemory
from fedkd.continual.masks.task_inference import Superposition, keep_units
from fedkd.continual.mixins import Phases, TaskInference, TaskParameters
from fedkd.continual.statistics import present_statistics, recall_statistics
from fedkd.continual.task_model import TaskModel
from fedkd.errors import UserError
from fedkd.models import evaluation_mode
from fedkd.plugins import hyperparameters
from fedkd.training import NormWithStatistics, OptimizerSpec

MASKED_OR_CONSTANT = (nn.Linear, nn.Conv2d, NormWithStatistics, nn.GroupNorm, nn.LayerNorm)
MASK = "mask"
"""The phase in which scores are trained, and weights are not."""
SCORE_BITS = 32
DEFAULT_SUPERFLUOUS = 100
"""SupSup's networks for ten classes have 500 outputs; a fifth of that tells tasks apart as well."""


@hyperparameters
class SupermaskLearner(FastSteps, Phases, TaskInference, TaskParameters, Learner):
    """Base of learners that give each task a mask over the same weights.

    Masks cover the weights of linear and convolutional layers, the classifier's included. Biases stay zero,
    and normalisation has no scale and shift. A task stores its mask, one bit per weight, and its statistics.
    """

    traits: ClassVar[LearnerTraits] = LearnerTraits(isolates=True, task_statistics=True, withholds_masks=None)

    density: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of a layer's weights that `topk` takes; 0.3 to 0.5 gives the best single masks. Sparser tasks
    overlap less: t independent masks leave the last one (1 − density)^(t−1) of its weights to itself (see
    `free_share` in the metrics). Take about 1/t if weights are trained too."""
    rule: Literal["topk", "threshold"] = "topk"
    """Rule from scores to a mask. `topk` takes the `density` share of largest |score| in each layer.
    `threshold` takes every score ≥ 0, about half of the weights; it is cheaper a step and ignores
    `density`."""
    initial_weights: Literal["signed-constant", "network"] = "signed-constant"
    """`signed-constant`: sign(w) · √2/√fan_in, as in both papers; random signs of one size are what masks
    choose from best. `network`: as the network comes, for networks that were trained before."""
    mask_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the scores; absent: the scenario's. Scores start at about 1/√fan_in, and only their
    order counts. Adam needs about 1e-3; wide networks bear 1e-2, but small convolutional ones may stay at
    chance. SGD needs 10 to 100 times the rate of weights."""
    mask_optimizer: Literal["adam", "adamw", "sgd"] | None = None
    """Optimiser of the scores; absent: the scenario's, whose momentum and weight decay count here too. Adam
    is the safe choice: gradients of scores differ by orders of magnitude between layers."""
    inference: Literal["one-shot", "binary", "exhaustive"] = "one-shot"
    """Task inference for samples without a task. `one-shot`: the steepest slope among all masks. `binary`: by
    halving; several times as expensive, safer with many tasks. `exhaustive`: each mask alone, a forward
    pass per mask; not in the paper. Use it for networks with running statistics: a superposition has none,
    and slopes through others are uninformative."""
    objective: Literal["entropy", "superfluous"] = "entropy"
    """Objective that the right mask lowers: `entropy` of the outputs' softmax, or `superfluous`, the
    logsumexp through further output units that training pushes down. The latter is safer with few classes
    a task."""
    superfluous_units: Annotated[int, Field(ge=0)] | None = None
    """Further output units, which no label belongs to; absent: 100 for the objective that needs them, else
    none. The more, the surer the inference, at the price of a wider head."""
    kkt: bool = False
    """Start a task from the scores of the old task whose mask suits its samples best (k-NN knowledge
    transfer). It suits similar tasks: masks overlap more, which leaves less to train. All scores are
    stored at 32 bits a weight and task, as a rounded score could change its rank."""
    kkt_neighbours: Annotated[int, Field(ge=1)] = 200
    """k of its k-NN, never more than there are reference samples. 200 in the paper; take about the number of
    samples of one class among the reference where that is less."""
    kkt_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the new task's batches that is used, at least one; 0.2 in the paper. More makes the choice
    safer, at one forward pass per sample and old task."""

    def __post_init__(self) -> None:
        if self.objective == "superfluous" and self.superfluous_units == 0:
            raise UserError("must be ≥ 1 for the objective 'superfluous'", key="continual.superfluous_units")

    def check(self, network: nn.Module) -> None:
        """Refuse parameters that can be neither masked nor constant."""
        known: set[int] = set()
        layers = 0
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                if id(module.weight) in known:
                    raise UserError(
                        f"'{self.name}' cannot mask '{name}': another layer shares its weight",
                        key="continual.learner",
                    )
                layers += 1
            if isinstance(module, MASKED_OR_CONSTANT):
                known.update(id(parameter) for parameter in module.parameters(recurse=False))
        unknown = [name for name, parameter in network.named_parameters() if id(parameter) not in known]
        if unknown or not layers:
            what = f"but this network has '{unknown[0]}'" if unknown else "but this network has none"
            raise UserError(
                f"'{self.name}' masks linear and convolutional layers, {what}", key="continual.learner"
            )
        if self.kkt and not hasattr(network, "features"):
            raise UserError("needs a model with a method `features`", key="continual.kkt")

    @property
    def extra_outputs(self) -> int:
        """Number of further output units."""
        if self.superfluous_units is None:
            return DEFAULT_SUPERFLUOUS if self.objective == "superfluous" else 0
        return self.superfluous_units

    def prepare(self, context: LearnerContext) -> None:
        """Set the weights' magnitudes, and constant biases, scales and shifts."""
        with torch.no_grad():
            for weight in self.memory(context).weights.values():
                if self.initial_weights == "signed-constant":
                    weight.copy_(masks.signed_constant(weight))
            for module in context.network.modules():
                for name, parameter in module.named_parameters(recurse=False):
                    if name == "bias":
                        parameter.zero_()
                    elif not isinstance(module, nn.Linear | nn.Conv2d):
                        parameter.fill_(1.0)

    def phase_of(self, epoch: int, epochs: int) -> str:
        return MASK

    def begin_phase(self, context: LearnerContext) -> None:
        """Draw the task's scores, or copy an old task's, unless it has a mask."""
        memory, slot = self.memory(context), self.slot(context, context.task)
        if memory.has(slot):
            return
        lender = None
        if self.kkt:
            earlier, features = self.earlier(context, slot), partial(self._features, context)
            k, share = self.kkt_neighbours, self.kkt_share
            lender = kkt.lender(context, slot, earlier, features, neighbours=k, share=share)
        scores = memory.fresh_scores(slot) if lender is None else memory.scores(lender)
        # Copies: the lender's are to stay as they are.
        memory.set_scores(slot, {name: own.detach().clone() for name, own in scores.items()})

    def trainable(self, context: LearnerContext) -> Tensors:
        return self.memory(context).scores(self.slot(context, context.task))

    def optimizer(self, context: LearnerContext, spec: OptimizerSpec) -> OptimizerSpec:
        return replace(spec, name=self.mask_optimizer or spec.name, lr=self.mask_lr or spec.lr)

    def end_task(self, context: LearnerContext) -> None:
        """Store the task's mask as bits, and its exclusive share."""
        memory, slot = self.memory(context), self.slot(context, context.task)
        if memory.has(slot):
            memory.settle(slot, keep_scores=self.kkt)
            self.remember_figures(context, slot)

    def remember_figures(self, context: LearnerContext, slot: int) -> None:
        """Store a mask's free share, and its overlap with each earlier mask."""
        memory, earlier = self.memory(context), self.earlier(context, slot)
        share, overlaps = memory.free_share(slot, earlier), memory.overlaps(slot, earlier)
        memory.state.free_share[slot] = context.units[0].new_tensor(share, dtype=torch.float64)
        memory.state.overlap[slot] = context.units[0].new_tensor(overlaps, dtype=torch.float64)

    def report(self, context: LearnerContext) -> dict[str, float]:
        """Return figures of the task's mask.

        `free_share` belongs to no earlier mask; `overlap` is the mean share in an earlier one;
        `stored_bits_per_weight` is its cost, `coded_bits_per_weight` that of an entropy coder. With `kkt`:
        `kkt_task` (−1: none), `kkt_accuracy` of the best old task and `kkt_chance`.
        """
        memory, slot = self.memory(context), self.slot(context, context.task)
        if context.task < 0 or not memory.has(slot):
            return {}
        earlier = self.earlier(context, slot)
        overlaps = memory.overlaps(slot, earlier)
        bits, weights = memory.bits(slot), sum(memory.sizes)
        figures = {
            "density": masks.density_of(bits, weights),
            "free_share": memory.free_share(slot, earlier),
            "overlap": sum(overlaps) / len(overlaps) if overlaps else 0.0,
            "stored_bits_per_weight": self.stored_bits(bits, weights) / weights,
            "coded_bits_per_weight": masks.coded_bits(bits, memory.sizes),
        }
        if slot in memory.state.kkt:
            figures["kkt_task"] = float(memory.state.kkt[slot])
            figures["kkt_accuracy"] = float(memory.state.kkt_accuracies[slot].max())
            figures["kkt_chance"] = 1.0 / len(context.units[context.task])
        return figures

    def stored_bits(self, bits: Sequence[Tensor], weights: int) -> int:
        """Return the bits that a packed mask of `weights` takes after its task."""
        packed = sum(masks.BITS * len(own) for own in bits)
        return packed + (SCORE_BITS * weights if self.kkt else 0)

    def task_parameters(self, context: LearnerContext, task: int) -> Tensors:
        """Return the weights under the task's mask, with gradients for scores in training."""
        memory, slot = self.memory(context), self.slot(context, task)
        if memory.has_scores(slot) and not memory.is_settled(slot):
            return memory.trainable_mask(slot)
        return memory.masked_weights(slot)

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return the logsumexp of superfluous units, which pushes them down."""
        if not self.extra_outputs:
            return None
        outputs = step.outputs()
        own = context.logits_of(outputs, context.task)
        both = torch.cat([own, outputs[:, context.outputs :]], dim=1)
        return (both.logsumexp(dim=1) - own.logsumexp(dim=1)).mean()

    def predict_without_task(
        self, context: LearnerContext, model: TaskModel, x: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return outputs under each sample's likeliest mask, other units far below, and its tasks."""
        slots = self.slots(context)
        with evaluation_mode(context.network):
            if not slots:
                return model.outputs(x)[:, : context.outputs], None
            inferred = self.infer(context, slots, x)
            outputs = torch.empty(len(x), context.outputs, device=x.device)
            for position, slot in enumerate(slots):
                rows = (inferred == position).nonzero().flatten()
                if len(rows):
                    own = context.run(x[rows], self._tensors(context, slot))[:, : context.outputs].float()
                    outputs[rows] = keep_units(own, self.units(context, slot))
        slot_of_task = torch.tensor(
            [self.slot(context, task) if task <= context.task else -1 for task in range(context.tasks)],
            device=x.device,
        )
        return outputs, torch.tensor(slots, device=x.device)[inferred][:, None] == slot_of_task

    def infer(self, context: LearnerContext, slots: Sequence[int], x: Tensor) -> Tensor:
        """Return each sample's likeliest mask `[B]`, a position among `slots`."""
        together = self.superposition(context, slots)
        if self.inference == "exhaustive":
            return together.exhaustive(x)
        return together.one_shot(x) if self.inference == "one-shot" else together.binary(x)

    def superposition(self, context: LearnerContext, slots: Sequence[int]) -> Superposition:
        """Return the masks of `slots` over the network's weights."""
        memory = self.memory(context)
        return Superposition(
            context.run,
            memory.weights,
            [memory.masks(slot) for slot in slots],
            [self._statistics(context, slot) for slot in slots],
            self.objective,
            context.outputs,
        )

    def memory(self, context: LearnerContext) -> MaskMemory:
        """Return the client's stored masks."""
        return MaskMemory(context, self.rule, self.density)

    def slot(self, context: LearnerContext, task: int) -> int:
        """Return the number of a task's mask: the task's own, where its boundaries are known."""
        return task

    def slots(self, context: LearnerContext) -> list[int]:
        """Return all masks in order."""
        memory = self.memory(context)
        return [task for task in range(context.task + 1) if memory.has(task)]

    def earlier(self, context: LearnerContext, slot: int) -> list[int]:
        """Return the masks before one."""
        return [other for other in self.slots(context) if other < slot]

    def units(self, context: LearnerContext, slot: int) -> Tensor:
        """Return the output units `[C]` that a mask was trained on."""
        return context.units[slot]

    def _tensors(self, context: LearnerContext, slot: int) -> Tensors:
        return {**self.memory(context).masked_weights(slot), **self._statistics(context, slot)}

    def _statistics(self, context: LearnerContext, slot: int) -> Tensors:
        if slot == context.task:
            return present_statistics(context.network)
        return recall_statistics(context, slot)

    def _features(self, context: LearnerContext, slot: int, x: Tensor) -> Tensor:
        model = TaskModel(context.network, None, self._tensors(context, slot))
        with evaluation_mode(context.network):
            return torch.cat([model.features(x[part]) for part in context.batches(len(x))])
