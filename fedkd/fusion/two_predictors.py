"""`two_predictors`: a distilled model and one without guidance, mixed in evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from fedkd.fusion import AuxNetwork, AuxNetworks, Capabilities, LocalObjective
from fedkd.fusion.auxiliary import OWN_NETWORK, joined
from fedkd.fusion.distillation.experts import Experts
from fedkd.fusion.views import Arrays, ClientView, LocalBatch, LocalStep
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor, nn

ALONE = "alone"
"""The network without guidance, which never leaves the client."""


@hyperparameters
class TwoPredictors(LocalObjective, AuxNetworks, Experts):
    """Mix a distilled and a local model of each client in evaluations.

    ::

        b     the client's model: learns own samples and the experts' targets, and makes the uploads
        a     a network of the same architecture: learns own samples alone, in the same steps
        g     = Σ_c∈lacked b_c(x)                  b's probability of classes without own training samples
        p(x)  = (1 − g) a(x) + g b(x)              the prediction in evaluations

    It is the control for strategies with one model that is good at both: it forgets nothing, at twice the
    memory and arithmetic of local training. `a` is `local` with other initial weights.
    """

    name: ClassVar[str] = "two_predictors"

    evaluated_networks: ClassVar[tuple[str, ...]] = (OWN_NETWORK, ALONE)

    @cached_property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, needs={"gradients"})

    def aux_networks(self) -> Mapping[str, AuxNetwork]:
        """Return a, with its own initial weights on each client."""
        return {ALONE: AuxNetwork(lambda make: make.like_own(), start="client")}

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep:
        """Return the sum of both cross entropies; each trains its own network."""
        from fedkd.training import cross_entropy

        alone = client.network(ALONE)

        def loss(batch: LocalBatch) -> Tensor:
            return cross_entropy(batch.logits, batch.labels) + cross_entropy(
                alone(batch.inputs), batch.labels
            )

        return loss

    def predictor(self, client: ClientView) -> nn.Module:
        """Return both as one network, whose outputs are logarithms of p."""
        import torch

        lacked = torch.tensor([float(count == 0) for count in client.label_counts()])
        return joined(_mixed, client.network(ALONE), client.network(), lacked=lacked)


def _mixed(x: Tensor, alone: nn.Module, guided: nn.Module, *, lacked: Tensor) -> Tensor:
    """Return log p `[B, C]` of samples; `lacked` `[C]` is 1 for a class without training samples, else 0."""
    import torch

    own, other = alone(x).float().softmax(dim=1), guided(x).float().softmax(dim=1)
    gate = (other * lacked.to(other.device)).sum(dim=1, keepdim=True)
    mixed: Tensor = (1 - gate) * own + gate * other
    return mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()
