"""A router: for each sample a softmax over a few senders, learned on all samples at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TIED = 1e-9
"""Scores that are nearer to each other than this are equal: who is kept must not depend on rounding."""

LEAST = 1e-150
"""Probability below which a mixture's is taken for this: nothing that is divided by it overflows."""


@dataclass(frozen=True, eq=False)
class Router:
    """What a router begins with and is held to.

    Attributes:
        begin: Scores of senders before anything is learned, `[N]`.
        kept: Senders that a sample is routed to, ≥ 1; others tied with the last one stay too.
        balance: Weight of the loss that evens out who is asked.
        z_loss: Weight of the loss on the size of scores.
    """

    begin: np.ndarray
    kept: int
    balance: float
    z_loss: float

    def scores(self, learned: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return ``s_m(i)``, `[M, N]`, of what was learned `[F, N]` and of samples' features `[M, F]`."""
        return self.begin + features @ learned

    def gate(self, learned: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return ``g_m(i)``, rows that sum to 1, `[M, N]`."""
        return self._gate_of(self.scores(learned, features))

    def _gate_of(self, scores: np.ndarray) -> np.ndarray:
        place = max(scores.shape[1] - self.kept, 0)
        last = np.partition(scores, place, axis=1)[:, place : place + 1]
        return _softmax(np.where(scores >= last - TIED, scores, -np.inf))

    def loss(
        self, learned: np.ndarray, features: np.ndarray, q: np.ndarray, wanted: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Return the loss of a router and its gradient in what is learned, `[F, N]`.

        Who is kept and who is asked most often are constants in it, as always in mixtures of experts.

        Args:
            learned: A, `[F, N]`.
            features: Of the samples, `[M, F]`.
            q: Probabilities of the senders, `[N, M, C]`.
            wanted: What is to be got right, `[M, C]`.
        """
        scores = self.scores(learned, features)
        gate = self._gate_of(scores)
        samples, senders = gate.shape
        by_sample = np.ascontiguousarray(q.transpose(1, 0, 2))
        # Nobody gives what is wanted any probability: then nobody is to blame.
        mix = np.maximum((gate[:, None, :] @ by_sample)[:, 0], LEAST)
        first = _first(scores)
        asked = first.mean(axis=0)
        log_sum = _log_sum_exp(scores)
        value = -(wanted * np.log(mix)).sum() / samples
        value += self.balance * senders * (asked @ gate.mean(axis=0)) + self.z_loss * (log_sum**2).mean()
        # How much of what is wanted each sender answers for, `[M, N]`, at most 1.
        share = gate * (by_sample @ (wanted / mix)[..., None])[..., 0]
        slope = gate * share.sum(axis=1, keepdims=True) - share
        slope += self.balance * senders * gate * (asked - gate @ asked[:, None])
        slope += 2.0 * self.z_loss * log_sum[:, None] * _softmax(scores)
        return float(value), features.T @ (slope / samples)


def train_router(
    router: Router, features: np.ndarray, q: np.ndarray, wanted: np.ndarray, *, steps: int, lr: float
) -> np.ndarray:
    """Return what a router learns in some steps of gradient descent from nothing, `[F, N]`.

    Args:
        router: Its beginning and its losses.
        features: Of the samples, `[M, F]`.
        q: Probabilities of the senders, `[N, M, C]`.
        wanted: What is to be got right, `[M, C]`.
        steps: How many.
        lr: Their size.
    """
    learned = np.zeros((features.shape[1], len(q)))
    for _ in range(steps):
        learned = learned - lr * router.loss(learned, features, q, wanted)[1]
    return learned


def mixed(gate: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Return ``Σ_m g_m(i) q_m[i]``, rows that sum to 1, `[M, C]` float32.

    Args:
        gate: `[M, N]`.
        predictions: Probabilities, `[N, M, C]`.
    """
    fused = (gate[:, None, :] @ predictions.transpose(1, 0, 2).astype(np.float64))[:, 0]
    return (fused / fused.sum(axis=-1, keepdims=True)).astype(np.float32)


def _first(scores: np.ndarray) -> np.ndarray:
    """Return who has the highest score of each sample, `[M, N]`: a one, shared out among several."""
    best = scores >= scores.max(axis=1, keepdims=True) - TIED
    return best / best.sum(axis=1, keepdims=True)


def _log_sum_exp(scores: np.ndarray) -> np.ndarray:
    top = scores.max(axis=1)
    return top + np.log(np.exp(scores - top[:, None]).sum(axis=1))


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
