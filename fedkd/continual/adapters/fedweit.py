"""FedWeIT on a client: a shared base, masks, own sparse parts, and other clients' parts.

The strategy `fedkd.fusion.streams.fedweit` exchanges bases and parts.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedkd.continual.adapters.decomposition import Layout, head_of
from fedkd.continual.adapters.weit_state import WeITState, sparse, trained_shapes
from fedkd.continual.context import LearnerContext
from fedkd.continual.layers import find_layers
from fedkd.continual.learner import Learner, LearnerTraits, Step, Tensors
from fedkd.continual.mixins import Phases, StateExchange, TaskParameters
from fedkd.errors import UserError
from fedkd.plugins import hyperparameters


@hyperparameters
class FedWeIT(Phases, StateExchange, TaskParameters, Learner):
    """Split weights into a base, a mask and sparse part per task, and other clients' parts.

    For the weights of two or more dimensions below the head, layer by layer and task by task::

        θ_t = B ⊙ m_t + A_t + Σ_i α_{t,i} A_i                 m_t = σ(s_t), one number for each output unit
        loss + λ1 (Σ_{i ≤ t} ‖A_i‖₁ + ‖m_t‖₁) + λ2 Σ_{i < t} ‖(B ⊙ m_i + A_i) − (B ⊙ m_i + A_i)*‖²
             + λ/2 (‖A_t‖² + ‖s_t‖²), and in the first task λ/2 ‖B‖²         A_t begins at B/3, m_t at 1/2

    B is the base, A_t the task's own part. The A_i of the sum are other clients' parts at the start of the
    task, each with an attention α per layer. * marks the values at the end of the last task. Trained are B,
    s_t, A_t, α and the A_i of earlier tasks. When a task ends, small weights of parts become zero.

    Each task has its own head rows, one-dimensional parameters and normalisation statistics. They start from
    their initial values.

    The strategy `fedweit` averages the base and lends parts to other clients. With `local` or exchanged
    predictions this is additive parameter decomposition (APD; Yoon et al., ICLR 2020, arXiv 1902.09432) with
    masks over units. It stores two numbers per weight and task. A step costs two passes over the weights for
    each earlier task.
    """

    name: ClassVar[str] = "fedweit"
    paper: ClassVar[str] = (
        "Yoon, Jeong, Lee, Yang & Hwang, Federated Continual Learning with Weighted Inter-client Transfer,"
        " ICML 2021, arXiv 2003.03196"
    )
    source_note: ClassVar[str] = (
        "units rank by σ(s) and attention begins at 0, where the authors' code ranks by |s| and draws it"
    )
    traits: ClassVar[LearnerTraits] = LearnerTraits(isolates=True, task_statistics=True)

    sparsity: Annotated[float, Field(ge=0)] = 1e-3
    """λ1 of own parts; 1e-3 in the authors' code. A larger value leaves fewer weights to store and send, and
    shifts more of a task to the base."""
    mask_sparsity: Annotated[float, Field(ge=0)] | None = None
    """λ1 of masks; absent: `sparsity`, as in the paper. The authors' code has 0."""
    retention: Annotated[float, Field(ge=0)] = 100.0
    """λ2: strength that holds earlier tasks to their values; 100 in the paper, whose code halves the square.
    Plain SGD diverges unless lr · λ2 · 2 · (tasks) is below 2; Adam does not."""
    threshold: Annotated[float, Field(ge=0)] | None = None
    """Weights of a part whose size is not above it count as zero at the end of a task; absent: `sparsity`, as
    in the authors' code. Gradients of an L1 penalty alone make nothing zero."""
    initial_mask: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Every unit's mask at the start of a task; about 0.5 in the authors' code. Nearer to 1 a task starts
    nearer to the base, but the sigmoid learns slower."""
    initial_part: Annotated[float, Field(ge=0, le=1)] = 1 / 3
    """A task's own part when it begins, as a share of the base: with the mask at 0.5 a task begins at 0.83 B.
    A third in the authors' code, there of the initial base; 0 begins with an empty part."""
    decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay of the present part and of its mask's scores, and in the first task of the base; 1e-4 in
    the authors' code."""
    borrow: Literal["latest", "all", "nothing"] = "latest"
    """Parts lent to a starting task: the `latest` of every other client, as in the authors' code; `all` known
    ones, as in the paper's sum, at a set of weights per part and step; or `nothing`."""
    initial_attention: float = 0.0
    """Every α at the start of a task. At 0 a part has no effect before it proves useful; the authors' code
    draws α at random, which starts with noise as large as a part."""

    def check(self, network: nn.Module) -> None:
        """Refuse a network without weights below its head, or with shared weights."""
        shapes = trained_shapes(network)
        heads = [layer.weight_name for layer in find_layers(network).values() if layer.is_head]
        problem = None
        if not Layout.of(shapes).shapes:
            problem = "splits the weights below a head, and the model has none"
        elif heads != [head_of(shapes)]:
            problem = "needs a model whose last linear layer, or `head`, makes the outputs"
        elif len(dict(network.named_parameters(remove_duplicate=False))) != len(
            dict(network.named_parameters())
        ):
            problem = "cannot split weights that layers share"
        if problem:
            raise UserError(f"'{self.name}' {problem}", key="continual.learner")

    def begin_phase(self, context: LearnerContext) -> None:
        """Create the task's mask, part and attention to lent parts, once per task."""
        task, state = context.task, WeITState(context)
        if state.has_begun(task):
            return
        score = math.log(self.initial_mask / (1.0 - self.initial_mask))
        lenders = self._lenders(context)
        state.lenders = torch.tensor(lenders, dtype=torch.int64, device=context.device).view(-1, 2)
        for name, base in state.bases().items():
            state.mask[task, name] = base.new_full((len(base),), score)
            state.part[task, name] = self.initial_part * base.detach()
            if lenders:
                state.attention[name] = base.new_full((len(lenders),), self.initial_attention)
        heads = _head_names(context)
        for name, own in context.network.named_parameters():
            if own.requires_grad and name not in state.bases():
                rows = own[context.units[task]] if name in heads else own
                state.own[task, name] = rows.detach().clone()

    def trainable(self, context: LearnerContext) -> Tensors:
        """Return the base, the task's own tensors, and own parts of earlier tasks."""
        state, task = WeITState(context), context.task
        own = state.mask.in_memory(task) | state.own.in_memory(task)
        return {**state.bases(), **own, **state.part.in_memory(), **state.attention.in_memory()}

    def end_task(self, context: LearnerContext) -> None:
        """Zero small weights of parts; store borrowed parts and each task's reference values."""
        state, task = WeITState(context), context.task
        if not state.has_begun(task):
            return
        state.part.put({name: self._pruned(part) for name, part in state.part.part().items()})
        for trained in (state.mask, state.own):
            trained.put({name: tensor.detach() for name, tensor in trained.part(task).items()}, task)
        sum_of_lent = state.lent(task)
        if sum_of_lent:
            flat = torch.cat([values.detach().flatten() for values in sum_of_lent.values()])
            state.borrowed.put(sparse(flat), task)
        state.attention.drop()
        state.lenders = None
        self._forget(context)
        for earlier in state.begun():
            for name, weight in state.kept(earlier).items():
                state.target[earlier, name] = weight.detach().contiguous()

    def report(self, context: LearnerContext) -> dict[str, float]:
        """Return `part_density`, `mask` and `borrowed_share` of the task.

        These are the share of nonzero weights in its own part, the mean of its masks, and the norm of
        borrowed parts relative to its weights.
        """
        state, task = WeITState(context), context.task
        if not state.has_begun(task):
            return {}
        parts = state.part.part(task)
        gates = [state.gate(task, name).detach() for name in parts]
        lent = state.lent(task)
        whole = self.task_parameters(context, task)
        weights = torch.cat([whole[name].detach().flatten() for name in parts])
        taken = torch.cat([values.detach().flatten() for values in lent.values()]) if lent else weights[:0]
        return {
            "part_density": float((torch.cat([p.flatten() for p in parts.values()]) != 0).double().mean()),
            "mask": float(torch.cat(gates).double().mean()),
            "borrowed_share": float(taken.double().norm() / weights.double().norm().clamp(min=1e-30)),
        }

    def task_parameters(self, context: LearnerContext, task: int) -> Tensors:
        """Return the task's weights and its other own parameters; before its start, the masked base."""
        state = WeITState(context)
        if not state.has_begun(task):
            share = self.initial_mask + self.initial_part
            return {name: base * share for name, base in state.bases().items()}
        tensors, lent = state.kept(task), state.lent(task)
        for name, borrowed in lent.items():
            tensors[name] = tensors[name] + borrowed
        heads, first = _head_names(context), dict(context.network.named_parameters())
        for name, own in state.own.part(task).items():
            if name in heads:
                own = first[name].detach().index_copy(0, context.units[task], own)
            tensors[name] = own
        return tensors

    def penalty(self, context: LearnerContext, step: Step) -> Tensor:
        """Return the penalties on sparse parts and masks, and on changes of earlier tasks."""
        state, present = WeITState(context), context.task
        masks = self.sparsity if self.mask_sparsity is None else self.mask_sparsity
        parts = list(state.part.part().values())
        total = self.sparsity * torch.stack([part.abs().sum() for part in parts]).sum()
        if masks:
            gates = [state.gate(present, name) for name in state.bases()]
            total = total + masks * torch.stack([gate.sum() for gate in gates]).sum()
        if self.decay:
            decayed = [kind[present, name] for kind in (state.part, state.mask) for name in state.bases()]
            if present == 0:
                decayed += state.bases().values()
            total = total + 0.5 * self.decay * torch.stack([t.square().sum() for t in decayed]).sum()
        if self.retention:
            for earlier in state.begun():
                if earlier != present:
                    for name, weight in state.kept(earlier).items():
                        moved = weight - state.target[earlier, name]
                        total = total + self.retention * moved.square().sum()
        return total

    def _pruned(self, part: Tensor) -> Tensor:
        least = self.sparsity if self.threshold is None else self.threshold
        return torch.where(part.detach().abs() > least, part.detach(), 0.0)

    def export_state(self, context: LearnerContext, tasks: Sequence[int]) -> Tensors:
        """Return the present mask as ``mask/{name}``, and parts as ``part/{task}/{name}``, pruned."""
        state = WeITState(context)
        told = {f"mask/{name}": state.gate(context.task, name) for name in state.bases()}
        for task in tasks:
            for name, part in state.part.part(task).items():
                told[f"part/{task}/{name}"] = self._pruned(part)
        return told

    def import_state(self, context: LearnerContext, state: Tensors) -> None:
        """Store others' parts, ``{client}/{task}/`` `values`, `bits` and `stamp`, for later tasks."""
        WeITState(context).known.put(state)
        self._forget(context)

    def _lenders(self, context: LearnerContext) -> list[tuple[int, int]]:
        """Return client and task of each part lent to a starting task, ascending."""
        if self.borrow == "nothing":
            return []
        stamps = WeITState(context).stamps()
        if self.borrow == "all":
            return sorted(stamps)
        latest: dict[int, tuple[int, int]] = {}
        for client, task in sorted(stamps, key=lambda key: (stamps[key], key)):
            latest[client] = (client, task)
        return sorted(latest.values())

    def _forget(self, context: LearnerContext) -> None:
        """Drop parts that no present or later task uses."""
        state = WeITState(context)
        present = [] if state.lenders is None else state.lenders.tolist()
        for client, task in state.stamps().keys() - {*self._lenders(context), *map(tuple, present)}:
            state.known.drop(client, task)


def _head_names(context: LearnerContext) -> set[str]:
    """Return the names of parameters that have a row for every output unit."""
    heads = [layer for layer in context.layers.values() if layer.is_head]
    return {name for layer in heads for name in (layer.weight_name, layer.bias_name)}
