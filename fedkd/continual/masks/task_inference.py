"""Task inference of SupSup: the gradient of a superposition of masks.

Wortsman et al., "Supermasks in Superposition", NeurIPS 2020, section 3.3. The task is the one whose share α_i
lowers the objective of ``p(α) = f(x; W ⊙ Σ_i α_i M_i)`` fastest, at α = 1/k.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedkd.continual.masks.masks import masked

Tensors = dict[str, Tensor]
Objective = Literal["entropy", "superfluous"]


def entropy_slope(outputs: Tensor, slopes: Tensor, classes: int) -> Tensor:
    """Return ``∂H/∂α_i`` `[B]` of the entropy H of the softmax: ``−Σ_c p_c (log p_c + H) · ∂o_c/∂α_i``.

    `slopes` are the derivatives ∂o/∂α_i `[B, O+S]` of all outputs; all of them count.
    """
    log_p = outputs.double().log_softmax(dim=1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(dim=1, keepdim=True)
    return -(p * (log_p + entropy) * slopes.double()).sum(dim=1)


def superfluous_slope(outputs: Tensor, slopes: Tensor, classes: int) -> Tensor:
    """Return ``∂G/∂α_i`` `[B]` of ``G = logsumexp(o)``, with its gradient only through superfluous units.

    ``Σ_{c ≥ O} p_c · ∂o_c/∂α_i``; training pushes these units down where the mask fits the sample.
    """
    p = outputs.double().softmax(dim=1)[:, classes:]
    return (p * slopes[:, classes:].double()).sum(dim=1)


def entropy(outputs: Tensor, classes: int) -> Tensor:
    """Return the entropy H `[B]` of the softmax over all outputs `[B, O+S]`."""
    log_p = outputs.double().log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def superfluous_mass(outputs: Tensor, classes: int) -> Tensor:
    """Return the probability `[B]` that outputs `[B, O+S]` give to superfluous units."""
    return outputs.double().softmax(dim=1)[:, classes:].sum(dim=1)


SLOPES = {"entropy": entropy_slope, "superfluous": superfluous_slope}
VALUES = {"entropy": entropy, "superfluous": superfluous_mass}


@dataclass(frozen=True)
class Superposition:
    """The masks of several tasks over the same weights.

    Attributes:
        forward: From samples and the tensors that stand in for the network's own to all outputs `[B, O+S]`.
        masks: Every task's, bool, by the names of the weights.
        statistics: Every task's statistics of normalisation layers, by name. The superposition has their
            mean, so that inference for a sample does not depend on the others of its batch.
        objective: Falls fastest by the right task's share.
        classes: Number of outputs O that belong to classes.
    """

    forward: Callable[[Tensor, Tensors], Tensor]
    weights: Tensors
    masks: Sequence[Tensors]
    statistics: Sequence[Tensors]
    objective: Objective
    classes: int

    def slopes(self, x: Tensor, members: Sequence[int]) -> Tensor:
        """Return ``∂(objective)/∂α_i`` `[B, k]` at α = 1/k of the k members, sample by sample.

        A forward-mode pass along each ``W ⊙ M_i`` gives the derivatives of all samples.
        """
        if not len(x):
            return torch.zeros(0, len(members), dtype=torch.float64, device=x.device)
        share = 1.0 / len(members)
        names = list(self.weights)
        # Group normalisation has no forward-mode derivative of images that are stored channels last.
        weights = {name: values.detach().contiguous() for name, values in self.weights.items()}
        mixed = tuple(
            weights[name] * (share * sum(self.masks[i][name].float() for i in members)) for name in names
        )
        statistics = self._mean_statistics(members)

        def outputs(*weights: Tensor) -> Tensor:
            return self.forward(x, {**dict(zip(names, weights, strict=True)), **statistics})

        columns = []
        for i in members:
            direction = tuple(masked(weights[name], self.masks[i][name]) for name in names)
            with torch.no_grad():
                values, derivatives, *_ = torch.func.jvp(outputs, mixed, direction)
            columns.append(SLOPES[self.objective](values, derivatives, self.classes))
        return torch.stack(columns, dim=1)

    def one_shot(self, x: Tensor) -> Tensor:
        """Return the member `[B]` of the smallest slope: ``argmin_i ∂H/∂α_i``, one gradient in all."""
        if len(self.masks) == 1:
            return torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self.slopes(x, range(len(self.masks))).argmin(dim=1)

    def binary(self, x: Tensor) -> Tensor:
        """Return the member `[B]` left after repeated halving to the smallest slopes."""
        inferred = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        # Samples with the same candidates are evaluated together.
        waiting = [(torch.arange(len(x), device=x.device), list(range(len(self.masks))))]
        while waiting:
            rows, members = waiting.pop()
            if len(members) == 1:
                inferred[rows] = members[0]
                continue
            slopes = self.slopes(x[rows], members)
            half = (len(members) + 1) // 2
            kept = slopes.argsort(dim=1, stable=True)[:, :half].sort(dim=1).values
            groups, group_of = kept.unique(dim=0, return_inverse=True)
            for number, group in enumerate(groups.tolist()):
                waiting.append((rows[group_of == number], [members[position] for position in group]))
        return inferred

    def exhaustive(self, x: Tensor) -> Tensor:
        """Return the member `[B]` of best objective alone, with its own statistics: a forward pass each."""
        values = []
        for mask, statistics in zip(self.masks, self.statistics, strict=True):
            tensors = {name: masked(weight.detach(), mask[name]) for name, weight in self.weights.items()}
            with torch.no_grad():
                outputs = self.forward(x, {**tensors, **statistics})
            values.append(VALUES[self.objective](outputs, self.classes))
        return torch.stack(values, dim=1).argmin(dim=1)

    def _mean_statistics(self, members: Sequence[int]) -> Tensors:
        return {
            name: torch.stack([self.statistics[i][name] for i in members]).mean(dim=0)
            for name, values in self.statistics[members[0]].items()
            if values.is_floating_point()
        }


def keep_units(outputs: Tensor, units: Tensor, margin: float = 30.0) -> Tensor:
    """Return outputs `[B, O]` with all other units below `units` `[C]`.

    The margin is finite, so the loss stays finite for a wrong task.
    """
    own = outputs.index_select(1, units)
    closed = (own.min(dim=1, keepdim=True).values - margin).expand_as(outputs).clone()
    return closed.index_copy(1, units, own)
