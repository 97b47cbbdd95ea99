"""Consolidation policy: groups of weights, each with a strength that holds it to a target."""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.continual.consolidation.columns import allowed_weights, unit_columns
from fedkd.continual.context import LearnerContext
from fedkd.continual.layers import head_names
from fedkd.continual.learner import Learner, LearnerTraits, Step, Tensors
from fedkd.continual.masks.chain import chain_of
from fedkd.continual.mixins import Phases, StepObserver
from fedkd.continual.regularisation.fisher import fisher_diagonal
from fedkd.continual.replay import buffer as episodes
from fedkd.continual.state import LearnerState, TableField, Value
from fedkd.errors import UserError
from fedkd.plugins import hyperparameters
from fedkd.training import OptimizerSpec

Strength = Annotated[float, Field(ge=0)] | Literal["frozen"]


class PolicyState(LearnerState):
    """Memory of the policy, by parameter."""

    strength = TableField()
    """``Σ_j b_j`` of finite strengths, by `ageing` or `kept`."""
    pull = TableField()
    """``Σ_j b_j θ*_j``, by the same."""
    frozen = TableField()
    """1 where b = ∞, else 0, uint8."""
    target = TableField()
    """Values of frozen weights."""
    rate = Value()
    """η, the learning rate."""


@hyperparameters
class Policy(Phases, StepObserver, Learner):
    """Hold each group of weights to its values at the end of its tasks, with its own strength.

    With groups g, strengths b_g and targets θ*_g::

        L = L_t + ½ Σ_g Σ_{i∈g} b_i (θ_i − θ*_i)²
        θ ← (θ + η b θ*) / (1 + η b)         after each step of the optimiser, η its learning rate
        b = Σ_j b_j,  θ* = Σ_j b_j θ*_j / b  of several tasks j
        b_j = λ γ^age                        age 0 is the last task; tasks in `kept` have γ = 1

    A frozen group has b = ∞: its weights stay bit for bit. The proximal step is stable for every b, where the
    gradient of the penalty diverges for η b > 2. Distillation takes the same step.

    Groups: `layers` are the hidden layers, and the head rows of each task's classes. `columns` gives each
    task an equal share of every layer's hidden units; a column reads its own units, and with `links` those of
    earlier tasks, never those of later ones. So a frozen column keeps the logits of its task bit for bit,
    if each task has its own head. A head that tasks share reads all columns.
    `importance` holds every weight with b_i = λ F_i, F the mean squared gradient of single samples.

    The paper proposes a framework and shows no algorithm. Schedules and the proximal step are ours.
    """

    name: ClassVar[str] = "policy"
    paper: ClassVar[str] = (
        "Ling and Bohn, A Deep Learning Framework for Lifelong Machine Learning, 2021, arXiv 2105.00157"
    )
    source_note: ClassVar[str] = (
        "the paper has no algorithm; groups, schedules and the proximal step are ours"
    )
    traits: ClassVar[LearnerTraits] = LearnerTraits(closed="holds the weights of old tasks in every step")

    groups: Literal["layers", "columns", "importance"] = "layers"
    """Groups of weights with one strength each."""
    strength: Strength = 1.0
    """b of the hidden layers, or λ of `importance`; 0 is free, `frozen` is ∞."""
    head_strength: Strength | None = None
    """b of the head rows of old tasks; absent: the `strength`. `importance` has no other strength."""
    decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """γ: what each further task leaves of the strengths. Frozen groups stay frozen."""
    kept: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    """Tasks, from 0, whose strengths stay as they are."""
    links: bool = True
    """Columns read the units of earlier tasks."""
    memory_size: Annotated[int, Field(ge=0)] = 0
    """Samples of old tasks that are replayed, as by `er`; all tasks together."""

    def configured_traits(self) -> LearnerTraits:
        return replace(self.traits, isolates=self.groups == "columns")

    def check(self, network: torch.nn.Module) -> None:
        """Refuse columns of a network other than a chain of layers."""
        if self.groups == "importance" and "frozen" in (self.strength, self.head_strength):
            told = "must be a number with continual.groups = 'importance', got 'frozen'"
            raise UserError(told, key="continual.strength")
        if self.groups != "columns":
            return
        try:
            chain_of(network)
        except ValueError as error:
            told = f"'columns' needs a chain of linear and convolutional layers; in this model {error}"
            raise UserError(told, key="continual.groups") from error

    def prepare(self, context: LearnerContext) -> None:
        """Freeze the weights between columns at 0."""
        if self.groups != "columns":
            return
        for name, allowed in allowed_weights(context, links=self.links).items():
            parameter = context.network.get_parameter(name)
            with torch.no_grad():
                parameter.mul_(allowed)
            self._freeze(context, name, ~allowed)

    def optimizer(self, context: LearnerContext, spec: OptimizerSpec) -> OptimizerSpec:
        """Note the learning rate of the phase."""
        PolicyState(context).rate = torch.tensor(spec.lr, dtype=torch.float64)
        return spec

    def project(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Zero the gradients of frozen weights."""
        frozen = PolicyState(context).frozen.part()
        for name, gradient in gradients.items():
            if name in frozen:
                gradient.masked_fill_(frozen[name].bool(), 0.0)
        return gradients

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return the correction of the loss by replayed samples; None: there are none."""
        episode = episodes.drawn(context, None) if self.memory_size else None
        if episode is None:
            return None
        share = len(episode.tasks) / (len(step.inputs) + len(episode.tasks))
        return share * (episodes.replay_loss(context, episode) - step.loss)

    def after_step(self, context: LearnerContext, before: Tensors, gradients: Tensors) -> None:
        """Take the proximal step towards the targets."""
        state, parameters = PolicyState(context), dict(context.network.named_parameters())
        rate = 0.0 if state.rate is None else float(state.rate)
        for name, (strength, pull) in self._anchors(context).items():
            values = parameters[name]
            values.copy_(proximal(values, rate, strength, pull))
        for name, frozen in state.frozen.part().items():
            parameters[name].copy_(torch.where(frozen.bool(), state.target[name], parameters[name]))

    def end_task(self, context: LearnerContext) -> None:
        """Age the strengths, add the anchors of the task's groups, and store samples."""
        if self.memory_size:
            episodes.remember(context, self.memory_size)
        state = PolicyState(context)
        for table in (state.strength, state.pull):
            table.put({name: self.decay * values for name, values in table.part("ageing").items()}, "ageing")
        slot = "kept" if context.task in self.kept else "ageing"
        for name, strength in self._strengths(context).items():
            values = context.network.get_parameter(name).detach()
            self._freeze(context, name, strength.isinf())
            finite = torch.where(strength.isinf(), 0.0, strength)
            if bool(finite.any()):
                old = state.strength.get((slot, name), torch.zeros_like(finite))
                pull = state.pull.get((slot, name), torch.zeros_like(finite))
                state.strength[slot, name] = old + finite
                state.pull[slot, name] = pull + finite * values

    def report(self, context: LearnerContext) -> dict[str, float]:
        """Return the share of frozen weights."""
        total = sum(p.numel() for p in context.network.parameters())
        frozen = PolicyState(context).frozen.part().values()
        return {"frozen_weights": sum(float(mask.sum()) for mask in frozen) / total}

    def _strengths(self, context: LearnerContext) -> Tensors:
        """Return the strength of every weight that the ended task adds, 0 outside its groups."""
        body = torch.inf if self.strength == "frozen" else float(self.strength)
        if self.groups == "importance":
            importance = fisher_diagonal(context, "true", None)
            return {name: body * values for name, values in importance.items()}
        own = self.strength if self.head_strength is None else self.head_strength
        head = torch.inf if own == "frozen" else float(own)
        labels = context.samples()[1].unique()
        heads, found = head_names(context.layers), {}
        columns = unit_columns(context) if self.groups == "columns" else {}
        for name, parameter in context.network.named_parameters():
            rows = torch.zeros(len(parameter), dtype=torch.bool, device=context.device)
            if name in heads:
                rows[context.units[context.task][labels]] = True
            else:
                rows = columns[name] == context.task if columns else ~rows
            chosen = rows.view(-1, *[1] * (parameter.dim() - 1)).expand_as(parameter)
            found[name] = torch.where(chosen, head if name in heads else body, 0.0).to(parameter)
        return found

    def _freeze(self, context: LearnerContext, name: str, chosen: Tensor) -> None:
        """Freeze further weights of a parameter at their present values."""
        if not bool(chosen.any()):
            return
        state = PolicyState(context)
        before = state.frozen.get(name, torch.zeros_like(chosen, dtype=torch.uint8))
        values = context.network.get_parameter(name).detach()
        held = state.target.get(name, values)
        state.frozen[name] = (before.bool() | chosen).to(torch.uint8)
        state.target[name] = torch.where(before.bool(), held, values).clone()

    def _anchors(self, context: LearnerContext) -> dict[str, tuple[Tensor, Tensor]]:
        """Return ``Σ b_j`` and ``Σ b_j θ*_j`` of every parameter that has an anchor."""
        state, found = PolicyState(context), dict[str, tuple[Tensor, Tensor]]()
        for slot in ("ageing", "kept"):
            for name, strength in state.strength.part(slot).items():
                pull = state.pull[slot, name]
                before = found.get(name)
                found[name] = (strength, pull) if before is None else (before[0] + strength, before[1] + pull)
        return found


def proximal(values: Tensor, rate: float, strength: Tensor, pull: Tensor) -> Tensor:
    """Return ``(θ + η b θ*) / (1 + η b)`` with `pull` b θ*; where b = 0, θ bit for bit."""
    return (values + rate * pull) / (1.0 + rate * strength)
