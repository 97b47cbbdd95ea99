"""HAT: a gate per task and unit protects weights of earlier tasks."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedkd.continual.context import LearnerContext
from fedkd.continual.layers import Layer
from fedkd.continual.learner import Learner, LearnerTraits, Step, Tensors
from fedkd.continual.masks.chain import chain_of, inputs_of, outputs_of
from fedkd.continual.mixins import Phases, StepObserver, TaskParameters
from fedkd.continual.state import LearnerState, TableField, Value
from fedkd.errors import UserError
from fedkd.plugins import hyperparameters

FARTHEST = 6.0
"""Largest absolute value of an embedding."""
STEEPEST = 50.0
"""Bound of s·e in its hyperbolic cosine."""
UNDECIDED = 0.01


class GateState(LearnerState):
    """HAT's memory."""

    embeddings = TableField()
    """By task and layer."""
    used = TableField()
    """How far earlier tasks use every unit, by layer."""
    taught = Value()
    """Output units of tasks that were trained, 1 or 0 ``[O]``."""


@hyperparameters
class HAT(Phases, StepObserver, TaskParameters, Learner):
    """Give every unit a gate per task, and protect weights between units of earlier tasks.

    With an embedding e of every hidden unit for every task, trained with the weights::

        forward:    h_l ← a_l ⊙ h_l,  a_l = σ(s · e_l)
        steepness:  s = 1/s_max + (s_max − 1/s_max) · (b − 1) / (B − 1)        step b of B of an epoch;
                    s = s_max in every prediction
        used:       a_l^≤t = max(a_l of task t at s_max, a_l^<t)
        gradients:  ∇W_l,ij ← (1 − min(a_l,i^<t, a_l−1,j^<t)) · ∇W_l,ij        a = 1 for the network's inputs
                    ∇e ← ∇e · s_max (cosh(s·e) + 1) / (s (cosh(e) + 1)),       |e| ≤ 6 after the step
        penalty:    c · Σ_l,i a_l,i (1 − a_l,i^<t) / Σ_l,i (1 − a_l,i^<t)

    Head units have no gate, and count as used once one of their tasks was trained. Gates multiply weights and
    biases, so layers must form a chain, with ReLU, pooling or dropout between them.

    A task is kept exactly if its gates are 0 or 1. With gates in between, later tasks change it a little
    (`undecided_gates` in the metrics): σ(400 e) is 1 above e = 0.05 in float32, but 0 only below −0.26. Gates
    need many steps and several batches per epoch. Prediction needs the task.
    """

    name: ClassVar[str] = "hat"
    paper: ClassVar[str] = (
        "Serrà et al., Overcoming Catastrophic Forgetting with Hard Attention to the Task, ICML 2018,"
        " arXiv 1801.01423"
    )
    traits: ClassVar[LearnerTraits] = LearnerTraits(isolates=True, projects_updates=True)

    steepness: Annotated[float, Field(ge=1, le=1e5)] = 400.0
    """s_max; 400 in the paper. The larger, the nearer gates are to 0 and 1, and the less is forgotten; the
    smaller, the longer they can change."""
    compression: Annotated[float, Field(ge=0)] = 0.75
    """c; 0.75 in the paper. The larger, the fewer units a task takes, and the more are left for later ones:
    raise it with the number of tasks. 0 leaves the size of tasks to chance."""

    def check(self, network: nn.Module) -> None:
        """Refuse a network other than a chain of two or more layers."""
        try:
            layers = chain_of(network)
        except ValueError as error:
            raise UserError(
                f"'hat' gates the units of a chain of linear and convolutional layers; in this model {error}",
                key="continual.learner",
            ) from error
        if len(layers) < 2:
            raise UserError("'hat' gates hidden units, but this model has none", key="continual.learner")

    def begin_phase(self, context: LearnerContext) -> None:
        """Draw the task's embeddings."""
        GateState(context).embeddings.put(self._embeddings(context, context.task), context.task)

    def trainable(self, context: LearnerContext) -> Tensors:
        return super().trainable(context) | GateState(context).embeddings.in_memory(context.task)

    def end_task(self, context: LearnerContext) -> None:
        if not context.phase:
            return
        state = GateState(context)
        with torch.no_grad():
            for layer, gate in self._gates(context, context.task, self.steepness).items():
                state.used[layer] = torch.maximum(self._used(context, layer, gate), gate)
        taught = torch.zeros(context.outputs, device=context.device)
        taught = taught if state.taught is None else state.taught.clone()
        taught[context.units[context.task]] = 1.0
        state.taught = taught

    def report(self, context: LearnerContext) -> dict[str, float]:
        """Return the shares of used units, and of the last task's gates in 0.01 … 0.99."""
        if not GateState(context).used:
            return {}
        used = torch.cat([GateState(context).used[layer] for layer in _hidden(context)])
        with torch.no_grad():
            gates = torch.cat(list(self._gates(context, context.task, self.steepness).values()))
        undecided = (gates > UNDECIDED) & (gates < 1 - UNDECIDED)
        return {
            "used_units": float(used.double().mean()),
            "undecided_gates": float(undecided.double().mean()),
        }

    def task_parameters(self, context: LearnerContext, task: int) -> Tensors:
        """Return the weights and biases of hidden units, each times its gate."""
        hidden, tensors = _hidden(context), {}
        steepness = self._steepness(context) if task == context.task else self.steepness
        for name, gate in self._gates(context, task, steepness).items():
            layer = hidden[name]
            weight, bias = layer.module.weight, layer.module.bias
            tensors[layer.weight_name] = weight * gate.view(-1, *[1] * (weight.dim() - 1))
            if bias is not None:
                tensors[layer.bias_name] = bias * gate
        return tensors

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return the penalty on units that the task newly uses."""
        if self.compression == 0:
            return None
        opened, room = [], []
        for layer, gate in self._gates(context, context.task, self._steepness(context)).items():
            free = 1.0 - self._used(context, layer, gate)
            opened.append((gate * free).sum())
            room.append(free.sum())
        return self.compression * torch.stack(opened).sum() / torch.stack(room).sum().clamp(min=1e-6)

    def project(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Return weight gradients limited by earlier tasks' gates, and scaled embedding gradients."""
        return {**gradients, **self._unused(context, gradients), **self._compensated(context, gradients)}

    def project_update(self, context: LearnerContext, changes: Tensors) -> Tensors:
        """Return weight changes limited by earlier tasks' gates."""
        return self._unused(context, changes)

    def after_step(self, context: LearnerContext, before: Tensors, gradients: Tensors) -> None:
        """Keep the embeddings within ±6."""
        for embedding in self._embeddings(context, context.task).values():
            embedding.clamp_(-FARTHEST, FARTHEST)

    def _steepness(self, context: LearnerContext) -> float:
        """Return s of the present step, or that of evaluations."""
        if context.position is None:
            return self.steepness
        least = 1.0 / self.steepness
        return least + (self.steepness - least) * context.position

    def _embeddings(self, context: LearnerContext, task: int) -> Tensors:
        """Return a task's embeddings by layer; before its start, the initial ones."""
        hidden, kept = _hidden(context), GateState(context).embeddings.part(task)
        if kept:
            return {layer: kept[layer] for layer in hidden}
        generator = context.generator("embeddings", task)
        return {
            name: torch.randn(outputs_of(layer), generator=generator).to(layer.module.weight)
            for name, layer in hidden.items()
        }

    def _gates(self, context: LearnerContext, task: int, steepness: float) -> Tensors:
        """Return a task's gates by layer."""
        return {name: (steepness * e).sigmoid() for name, e in self._embeddings(context, task).items()}

    def _used(self, context: LearnerContext, layer: str, like: Tensor) -> Tensor:
        """Return how far earlier tasks use the units of a layer."""
        return GateState(context).used.get(layer, torch.zeros_like(like))

    def _unused(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Return the gradients of the network's parameters, each times 1 − min(a_i, a_j)."""
        left, state = dict[str, Tensor](), GateState(context)
        if state.taught is None:
            return left
        before: Tensor | None = None
        for layer in chain_of(context.network):
            weight = layer.module.weight
            if layer.is_head:
                used = torch.ones(outputs_of(layer), device=context.device)
                used[: context.outputs] = state.taught
            else:
                used = state.used[layer.name]
            inputs = torch.ones(inputs_of(layer), device=context.device)
            if before is not None:  # a channel becomes several inputs where it is flattened
                inputs = before.repeat_interleave(inputs_of(layer) // len(before))
            held = torch.minimum(used[:, None], inputs[None])
            if layer.weight_name in gradients:
                gradient = gradients[layer.weight_name]
                left[layer.weight_name] = gradient * (1.0 - held).view(*held.shape, *[1] * (weight.dim() - 2))
            if layer.bias_name in gradients:
                left[layer.bias_name] = gradients[layer.bias_name] * (1.0 - used)
            before = used
        return left

    def _compensated(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Return the compensated gradients of the embeddings: those at s = 1, times s_max."""
        steepness, embeddings, left = self._steepness(context), GateState(context).embeddings, {}
        for layer, e in self._embeddings(context, context.task).items():
            name = embeddings.name_of((context.task, layer))
            if name in gradients:
                with torch.no_grad():
                    steep = (steepness * e).clamp(-STEEPEST, STEEPEST).cosh() + 1.0
                    left[name] = gradients[name] * (self.steepness / steepness) * steep / (e.cosh() + 1.0)
        return left


def _hidden(context: LearnerContext) -> dict[str, Layer]:
    """Return the layers whose units are gated, by name."""
    return {layer.name: layer for layer in chain_of(context.network) if not layer.is_head}
