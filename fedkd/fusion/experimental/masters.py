"""`masters`: weak teachers before strong ones; each sample's nearest teacher in the majority.

After curricula of masked teachers, without a known publication. There one teacher's small weights are masked
and restored during training; here weak clients come first.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Kind, Knowledge, softmax
from fedkd.fusion.distillation.confidence import log_confidence
from fedkd.fusion.distillation.soft_labels import TemperedLabels
from fedkd.fusion.math.probabilities import log_softmax
from fedkd.fusion.views import ClientView
from fedkd.plugins import hyperparameters
from fedkd.randomness import numpy_generator

ACCURACY = "accuracy"


@hyperparameters
class Masters(TemperedLabels):
    """Admit stronger teachers over rounds; distil each sample's nearest one.

    ::

        J(t)   = ⌈N (ρ₀ + (1 − ρ₀) min(1, t / T_w))⌉      heard in round t: the J weakest
        ȳ_i    = argmax of the mean of q_j[i] over all that are heard
        j_n(i) = argmax_j [argmax q_j[i] = ȳ_i] − λ KL(q_j[i] ‖ q_n[i])     heard, and not n itself
        K_n[i] = q_j[i] for this j;  q_n[i] where only n is heard

    Clients report their strength: the accuracy on held-out own samples, which poisoned clients may forge.
    With `held_out_share = 0` it is the mean confidence of predictions, without held-out samples or reports.
    """

    name: ClassVar[str] = "masters"
    source_note: ClassVar[str] = "after curricula of masked teachers, of which no publication was found"

    first_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """ρ₀: share of teachers in the first round; 1 is all clients from the start."""
    warm_up: Annotated[float, Field(ge=0, le=1)] = 0.5
    """T_w: share of all rounds until all clients teach; 0 is at once."""
    order: Literal["weak_first", "strong_first", "random"] = "weak_first"
    """Order of teachers; the others are controls. `random` is one order, drawn for the run."""
    distance_weight: Annotated[float, Field(ge=0, le=1e6)] = 0.5
    """λ: how much nearness counts against being in the majority. 1 / λ nats are as bad as being outvoted."""
    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of a client's samples that it keeps apart to measure its strength; 0 uses mean confidence, which
    costs no samples and which overfitted clients have most of."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of targets and of the loss; teachers are chosen at 1."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            sends="logits, and how strong the client is",
            kinds={"logits": Kind.TRANSFER_LOGITS, ACCURACY: Kind.SCORES},
            shapes={ACCURACY: "1"},
            optional=frozenset({"label_counts"} if self.held_out_share > 0.0 else {"label_counts", ACCURACY}),
            guides="each",
            counts_rounds=self.warm_up > 0.0 and self.first_share < 1.0,
            held_out_share=self.held_out_share,
        )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return K `[N, M, C]`; the weights `[N, N]` are shares of a receiver's samples by teacher."""
        assert knowledge.logits is not None
        log_q = log_softmax(knowledge.logits)
        q = np.exp(log_q)
        heard = self._heard(knowledge)
        consensus = q[heard].mean(axis=0).argmax(axis=-1)
        agrees = (q.argmax(axis=-1) == consensus).astype(np.float64)
        own = (q * log_q).sum(axis=-1)
        tempered = softmax(knowledge.logits, self.temperature)
        targets, weights = tempered.copy(), np.eye(len(q))
        for n in range(len(q)):
            teachers = heard[heard != n]
            if not len(teachers):
                continue
            apart = own[teachers] - np.einsum("jic,ic->ji", q[teachers], log_q[n])
            score = agrees[teachers] - self.distance_weight * np.maximum(apart, 0.0)
            share = score == score.max(axis=0)  # equally good teachers share the sample
            share = share / share.sum(axis=0)
            targets[n] = np.einsum("ji,jic->ic", share.astype(np.float32), tempered[teachers])
            weights[n] = 0.0
            weights[n, teachers] = share.mean(axis=1)
        return Guidance(targets, weights)

    def _heard(self, knowledge: Knowledge) -> np.ndarray:
        """Return the round's teachers, ascending, ties with the last included."""
        strength = self._strength(knowledge)
        if self.order == "strong_first":
            strength = -strength
        last = np.sort(strength)[self.number_heard(len(strength), knowledge.round, knowledge.rounds) - 1]
        return np.flatnonzero(strength <= last)

    def _strength(self, knowledge: Knowledge) -> np.ndarray:
        """Return each client's strength, or its place in a random order, `[N]`."""
        assert knowledge.logits is not None
        if self.order == "random":
            draws = [numpy_generator(knowledge.seed, "masters-order", client=c) for c in knowledge.clients]
            return np.array([generator.random() for generator in draws])
        if self.held_out_share > 0:
            return np.array([float(said[0]) for said in knowledge.payload[ACCURACY]])
        return np.exp(log_confidence(knowledge.logits).astype(np.float64)).mean(axis=1)

    def number_heard(self, clients: int, round: int, rounds: int) -> int:
        """Return J in a round, at least 1."""
        passed = 1.0 if self.warm_up == 0.0 else min(1.0, round / (self.warm_up * rounds))
        share = self.first_share + (1.0 - self.first_share) * passed
        return max(1, int(np.ceil(clients * share - 1e-9)))

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return logits, and the accuracy on held-out samples `[1]` if there are any."""
        if self.held_out_share == 0.0:
            return super().upload(client)
        logits, labels = client.held_out()
        accuracy = (logits.argmax(axis=-1) == labels).mean() if len(labels) else 0.0
        return super().upload(client) | {ACCURACY: np.array([accuracy], dtype=np.float32)}
