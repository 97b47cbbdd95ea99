"""The loss that a client minimises on its own samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fedkd.clients.rehearsal import Rehearsed
from fedkd.fusion.views import LocalBatch, LocalStep
from fedkd.training.losses import correct, cross_entropy

Taught = Callable[[Tensor, "Tensor | None", Tensor], Tensor]
"""What guidance adds: a function of logits ``[B, C]``, features ``[B, F]`` and labels ``[B]``, a scalar."""


@dataclass(frozen=True, eq=False)
class ProximalTerm:
    """FedProx's pull to the weights that training begins with (Li et al. 2020), ``μ/2 · ‖w − w_received‖²``.

    Attributes:
        mu: μ > 0.
        received: Those weights, in the order of the model's parameters.
    """

    mu: float
    received: Sequence[Tensor]

    @staticmethod
    def to_own_weights(model: nn.Module, mu: float) -> ProximalTerm:
        """Return the pull to the weights that a model has now."""
        return ProximalTerm(mu, [parameter.detach().clone() for parameter in model.parameters()])

    def __call__(self, model: nn.Module, received: Sequence[Tensor] = ()) -> Tensor:
        """Return the term for a model, a scalar.

        Args:
            received: Weights to take in place of this term's own, where several clients train together.
        """
        pairs = zip(model.parameters(), received or self.received, strict=True)
        squares: Tensor = sum((p - start).square().sum() for p, start in pairs)  # type: ignore[assignment]
        return 0.5 * self.mu * squares


@dataclass(frozen=True, eq=False)
class LocalLoss:
    """Cross entropy, with FedProx's pull and with what the strategy's guidance adds; or the strategy's own.

    With a loss of the strategy's own, it is called with the samples' indices after their labels.

    Attributes:
        proximal: FedProx's pull; None: nothing pulls.
        taught: What guidance adds; None: nothing.
        with_features: Whether that, or the strategy's own loss, wants the model's features.
        rehearsed: What is learned over again; None: nothing.
        step: The loss that stands in place of the cross entropy and what guidance adds; None: none does.
    """

    proximal: ProximalTerm | None = None
    taught: Taught | None = None
    with_features: bool = False
    rehearsed: Rehearsed | None = None
    step: LocalStep | None = None

    @property
    def constants(self) -> Sequence[Tensor]:
        """What the loss is called with after a batch (see `TrainJob.constants`)."""
        return () if self.proximal is None else self.proximal.received

    @property
    def own_alone(self) -> bool:
        """Whether only arrays and constants are this client's own, so that others' may take their place."""
        alone = self.taught is None and self.step is None
        return alone and (self.rehearsed is None or self.rehearsed.alike)

    @property
    def weight_rehearsed(self) -> float:
        """Weight of what is learned over again; 0: nothing is."""
        return 0.0 if self.rehearsed is None else self.rehearsed.weight

    def __call__(self, model: Any, inputs: Tensor, labels: Tensor, *others: Tensor) -> Tensor:
        """Return the mean loss over a batch.

        Args:
            *others: The samples' indices if there is a loss of the strategy's own, a batch of what is
                rehearsed if anything is, then the constants.
        """
        return self._with_logits(model, inputs, labels, others)[0]

    def scored(self, model: Any, inputs: Tensor, labels: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        """Return it with the number of correct answers (see `TrainJob.scored_loss`)."""
        value, logits = self._with_logits(model, inputs, labels, others)
        return value, correct(logits, labels)

    def _with_logits(
        self, model: Any, inputs: Tensor, labels: Tensor, others: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        index, others = (others[0], others[1:]) if self.step is not None else (None, others)
        extra = None
        if self.rehearsed is not None:
            # Before the private samples: what a learner reads off the model afterwards is about those.
            extra, others = self.rehearsed(model, others[0], others[1]), others[2:]
        features = model.features(inputs) if self.with_features else None
        logits = model(inputs) if features is None else model.head(features)
        flat = None if features is None else features.flatten(1)  # as they were uploaded
        if self.step is not None and index is not None:
            told = self.step(LocalBatch(model, index, inputs, labels, logits, flat))
            value, logits = told if isinstance(told, tuple) else (told, logits)
        else:
            value = cross_entropy(logits, labels)
            if self.taught is not None:
                value = value + self.taught(logits, flat, labels)
        if extra is not None:
            value = value + extra
        return (value if self.proximal is None else value + self.proximal(model, others)), logits
