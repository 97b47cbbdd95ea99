"""`path`: each client's router sends every transfer sample to suitable neighbours.

After Path-PKT, without a known publication: a softmax over a few models of other tasks routes each sample,
with a balance loss and a z-loss. The training of the router without a task loss is fedkd's.
"""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge, ServerCost, softmax
from fedkd.fusion.capabilities import Need
from fedkd.fusion.distillation.gate import TIE, first_choices, row_softmax
from fedkd.fusion.distillation.shift import KnowsStart, shift_cosine
from fedkd.fusion.distillation.transferability import UNLABELLED
from fedkd.fusion.math import distribution as distributions
from fedkd.fusion.math.combine import class_experts
from fedkd.fusion.server_cost import RoundExtent
from fedkd.plugins import hyperparameters

LEAST = 1e-150
"""Lower bound of a mixture's probability, so that no division by it overflows."""


@hyperparameters
class Path(ServerCost, KnowsStart):
    """Route every sample among a receiver's neighbours by the receiver's prediction.

    ::

        s_nm(i) = β · guess_nm + q_n[i] · A_n[:, m]            scores: guessed, and what is learned
        g_n(i)  = softmax over the `neighbours` highest        the gate; all others get 0
        K_n[i]  = Σ_m g_nm(i) softmax(z_m(x_i) / T)            for client n alone
        L(A_n)  = −mean_i Σ_c t_ic log Σ_m g_nm(i) q_m[i, c]
                  + balance · N Σ_m f_m mean_i g_nm(i) + z_loss · mean_i (log Σ_m exp s_nm(i))²

    t is the class experts' target (see `experts`), or the true label; f the share of samples with m's score
    highest. With `steps = 0` the guess alone decides, equally for all samples; with `"distance"` and all
    neighbours that is KnFu. Guesses are the predictors of the transferability map.

    The gate learns from the whole transfer set at once, since on single samples the balance loss would
    penalise every choice.
    """

    name: ClassVar[str] = "path"
    source_note: ClassVar[str] = "after Path-PKT, of which no publication was found"

    guess: Literal["none", "distance", "agreement", "surer", "shift"] = "agreement"
    """Initial scores: `distance` (−KL of mean predictions, as KnFu has it), `agreement` (share of
    samples with one answer), `surer` (share on which the sender says something else and is surer), `shift`
    (cosine of how both have moved since before any training; C more numbers are sent), or `none`."""
    beta: Annotated[float, Field(ge=0, le=1e6)] = 10.0
    """β: how sharply the guess chooses. Shares and cosines lie between −1 and 1, so 10 keeps a few."""
    neighbours: Annotated[int, Field(ge=1)] = 5
    """Senders that a sample may be routed to, the client itself among them (ties with the last stay)."""
    supervision: Literal["experts", "labels"] = "experts"
    """Answers that train the gate: the class `experts`' or the transfer set's true `labels`."""
    steps: Annotated[int, Field(ge=0, le=10_000)] = 50
    """Steps of gradient descent on the whole transfer set in every round; 0 leaves the guess alone."""
    lr: Annotated[float, Field(gt=0, le=1e6)] = 2.0
    """Their size. A gate's gradient is a difference of probabilities: try 0.5 to 5."""
    balance: Annotated[float, Field(ge=0, le=1e6)] = 0.01
    """Weight of the loss on balanced use of teachers. At 1 the gate is nearly uniform."""
    z_loss: Annotated[float, Field(ge=0, le=1e6)] = 0.01
    """Weight of the loss that keeps scores near 0, so that gates stay soft."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of targets and of the loss (gates are learned at 1)."""

    @cached_property
    def capabilities(self) -> Capabilities:
        needs: set[Need] = set()
        if self.supervision == "labels":
            needs.add("transfer_labels")
        if self.guess == "shift":  # which untrained networks answer
            needs.add("gradients")
        return dataclasses.replace(super().capabilities, guides="each", needs=needs)

    @property
    def tells_start(self) -> bool:
        """True if clients send their mean prediction before any training."""
        return self.guess == "shift"

    def server_cost(self, extent: RoundExtent) -> float:
        """Return the cost of a step's four products for every client's router."""
        return self.steps * extent.clients * (4 * 2.0 * extent.clients * extent.samples * extent.classes)

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return personal targets `[N, M, C]`; the weights `[N, N]` are the mean gates."""
        assert knowledge.logits is not None
        q = softmax(knowledge.logits).astype(np.float64)
        taught = softmax(knowledge.logits, self.temperature)
        wanted = self._wanted(q, knowledge.labels)
        scores = self.beta * self._guess(q, knowledge)
        targets, weights = np.empty_like(taught), np.empty(scores.shape)
        for n, begin in enumerate(scores):
            router = Router(begin, self.neighbours, self.balance, self.z_loss)
            gate = router.gate(train_router(router, q[n], q, wanted, steps=self.steps, lr=self.lr), q[n])
            targets[n] = mixed(gate, taught)
            weights[n] = gate.mean(axis=0)
        return Guidance(targets, weights / weights.sum(axis=1, keepdims=True))

    def _guess(self, q: np.ndarray, knowledge: Knowledge) -> np.ndarray:
        if self.guess == "shift":
            return shift_cosine(self.shift_of(knowledge))
        return np.zeros((len(q), len(q))) if self.guess == "none" else UNLABELLED[self.guess](q)

    def _wanted(self, q: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """Return the training targets of gates, `[M, C]`."""
        if self.supervision == "labels":
            assert labels is not None
            return np.eye(q.shape[-1])[labels]
        e = distributions.expertise("soft", q)
        everyone = np.full(len(q), 1.0 / len(q))
        return class_experts(everyone, q.astype(np.float32), e).astype(np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Router:
    """A router with first scores `begin` `[N]` and `kept` senders of a sample, ties included."""

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
        """Return the loss of a router A and its gradient in A, `[F, N]`.

        Features are `[M, F]`, the senders' probabilities q `[N, M, C]`, the right answers `[M, C]`. The kept
        and the most used senders are constants, as usual in mixtures of experts.
        """
        scores = self.begin + features @ learned
        gate = self._gate_of(scores)
        samples, senders = gate.shape
        by_sample = np.ascontiguousarray(q.transpose(1, 0, 2))
        # No teacher gives the label any probability: equal gradients.
        mix = np.maximum((gate[:, None, :] @ by_sample)[:, 0], LEAST)
        asked, top = first_choices(scores), scores.max(axis=1)
        log_sum = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
        value = -(wanted * np.log(mix)).sum() / samples
        value += self.balance * senders * (asked @ gate.mean(axis=0)) + self.z_loss * (log_sum**2).mean()
        # Each sender's share of the wanted probability, `[M, N]`, at most 1.
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
