"""A router: for each sample a softmax over a few senders, learned on all samples at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedkd.fusion.gate import TIE, first_choices, row_softmax

LEAST = 1e-150
"""Lower bound of a mixture's probability, so that no division by it overflows."""


@dataclass(frozen=True, eq=False)
class Router:
    """The settings of a router.

    Attributes:
        begin: Scores of senders before training, `[N]`.
        kept: Senders of a sample, ≥ 1; others tied with the last one stay too.
        balance: Weight of the loss that evens out the use of senders.
        z_loss: Weight of the loss on the size of scores.
    """

    begin: np.ndarray
    kept: int
    balance: float
    z_loss: float

    def gate(self, learned: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return ``g_m(i)``, rows that sum to 1, `[M, N]`, of A `[F, N]` and samples' features `[M, F]`."""
        return self._gate_of(self.begin + features @ learned)

    def _gate_of(self, scores: np.ndarray) -> np.ndarray:
        place = max(scores.shape[1] - self.kept, 0)
        last = np.partition(scores, place, axis=1)[:, place : place + 1]
        return row_softmax(np.where(scores >= last - TIE, scores, -np.inf))

    def loss(
        self, learned: np.ndarray, features: np.ndarray, q: np.ndarray, wanted: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Return the loss of a router and its gradient in A, `[F, N]`.

        Who is kept and who is asked most often are constants in it, as always in mixtures of experts.

        Args:
            learned: A, `[F, N]`.
            features: Of the samples, `[M, F]`.
            q: Probabilities of the senders, `[N, M, C]`.
            wanted: The right answers, `[M, C]`.
        """
        scores = self.begin + features @ learned
        gate = self._gate_of(scores)
        samples, senders = gate.shape
        by_sample = np.ascontiguousarray(q.transpose(1, 0, 2))
        # Nobody gives what is wanted any probability: then nobody is to blame.
        mix = np.maximum((gate[:, None, :] @ by_sample)[:, 0], LEAST)
        asked, top = first_choices(scores), scores.max(axis=1)
        log_sum = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
        value = -(wanted * np.log(mix)).sum() / samples
        value += self.balance * senders * (asked @ gate.mean(axis=0)) + self.z_loss * (log_sum**2).mean()
        # How much of what is wanted each sender answers for, `[M, N]`, at most 1.
        share = gate * (by_sample @ (wanted / mix)[..., None])[..., 0]
        slope = gate * share.sum(axis=1, keepdims=True) - share
        slope += self.balance * senders * gate * (asked - gate @ asked[:, None])
        slope += 2.0 * self.z_loss * log_sum[:, None] * row_softmax(scores)
        return float(value), features.T @ (slope / samples)


def train_router(
    router: Router, features: np.ndarray, q: np.ndarray, wanted: np.ndarray, *, steps: int, lr: float
) -> np.ndarray:
    """Return A `[F, N]` after steps of gradient descent from 0 (see `Router.loss`)."""
    learned = np.zeros((features.shape[1], len(q)))
    for _ in range(steps):
        learned = learned - lr * router.loss(learned, features, q, wanted)[1]
    return learned


def mixed(gate: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Return ``Σ_m g_m(i) q_m[i]``, `[M, C]` float32, of a gate `[M, N]` and probabilities `[N, M, C]`."""
    fused = (gate[:, None, :] @ predictions.transpose(1, 0, 2).astype(np.float64))[:, 0]
    return (fused / fused.sum(axis=-1, keepdims=True)).astype(np.float32)
