"""Mixin of strategies that shape the local training of their clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedkd.fusion.views import Arrays, ClientView, LocalLoss, LocalStep, Phase, Rehearsal

if TYPE_CHECKING:
    from fedkd.fusion.strategy import FusionStrategy


class LocalObjective:
    """Mixin: hooks into local training, ``class Mine(LocalObjective, FusionStrategy)``."""

    proximal_mu: float = 0.0
    """μ of ``μ/2 · ‖w − w_received‖²``, added to the loss. A hyper-parameter of this name turns it on."""

    def before_training(self, client: ClientView) -> None:
        """Prepare the client for its next local training."""

    def gradient_correction(self, client: ClientView) -> Arrays | None:
        """Return arrays to add to every clipped gradient, by parameter name."""
        return None

    def local_loss(self, guidance: Arrays) -> LocalLoss | None:
        """Return a term of the local loss from the client's last guidance, with `uses_local_loss`."""
        return None

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep | None:
        """Return the whole loss of private batches for the next local training.

        It replaces the cross entropy and `local_loss`; early stopping still uses the cross entropy. Guidance
        is the client's last with `uses_local_loss`; otherwise, and at first, it is empty.
        """
        return None

    def phases(self, epochs: int, *, last: bool) -> Sequence[Phase] | None:
        """Return the phases of a local training of ``training.local_epochs``; None: one of all weights.

        A phase begins with a fresh optimiser, unless the scenario keeps its state. `last` is the training
        after the last fusion (``end_with = "training"``).
        """
        return None

    def rehearsal(self, client: ClientView) -> Rehearsal | None:
        """Return samples to replay with private ones, in batches of equal size."""
        return None

    def infer(self, features: np.ndarray, guidance: Arrays) -> np.ndarray:
        """Return logits `[n, C]` by features `[n, F]` and the last guidance, with `infers_from_guidance`."""
        raise NotImplementedError(
            f"'{type(self).__name__}' does not define `infer`, so guidance cannot answer evaluations"
        )


_NONE = LocalObjective()


def objective_of(strategy: FusionStrategy) -> LocalObjective:
    """Return a strategy's hooks into local training; without the mixin, neutral ones."""
    return strategy if isinstance(strategy, LocalObjective) else _NONE


def trained_epochs(strategy: FusionStrategy, epochs: int) -> int:
    """Return the epochs of a local training, all phases together."""
    phases = objective_of(strategy).phases(epochs, last=False)
    return epochs if phases is None else sum(phase.epochs for phase in phases)
