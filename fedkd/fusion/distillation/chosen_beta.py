"""`chosen_beta`: each client tries KnFu with several β, and distils the best."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.errors import UserError
from fedkd.fusion import Capabilities, Guidance, Knowledge, softmax
from fedkd.fusion.distillation.soft_labels import TemperedLabels
from fedkd.fusion.math import distribution as distributions
from fedkd.fusion.math.combine import class_experts, combine
from fedkd.fusion.math.neighbour_weights import effectiveness, log_prior
from fedkd.fusion.math.similarity import kl
from fedkd.fusion.views import Arrays, ClientView, Distillation
from fedkd.plugins import hyperparameters

EXPERTS = "experts"
"""Each transfer sample's class by the class experts, `[M]`."""
CHOICE = "choice"


@hyperparameters
class ChosenBeta(TemperedLabels):
    """Send KnFu's targets for several β; each client distils those of its best trial.

    ::

        K_n^β[i] = Σ_m W_nm(β) q_m[i]          KnFu's effective knowledge, for every β
        F[i, c] ∝ Σ_m p_m[c] q_m[i, c] / Σ_m p_m[c]          the class experts'
        β_n = argmax_β  accuracy_n + a · agreement_n          of the client after a trial epoch with K_n^β

    A trial is one epoch on a share of the transfer set, with the same weights and order for every β; then the
    client is reset. The accuracy is on held-out samples (`training.held_out`), never on a test set. The
    agreement is with the class of F, on transfer samples outside the trial with classes that the client
    lacks. The first of equals wins; one β needs no trial.

    Guidance grows with the number of β, plus a byte or two a sample for F's classes. Each β costs a round a
    short training more.
    """

    name: ClassVar[str] = "chosen_beta"

    betas: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2, 5, 10)
    """The β that clients try, as in `knfu`: 0 weighs all clients equally, a large one leaves each alone."""
    agreement: Annotated[float, Field(ge=0)] = 0.5
    """a: weight of agreement with the experts about classes that the client lacks, relative to its accuracy
    on its own classes. At 0 it chooses by its own samples alone, and never learns new classes."""
    trial_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the transfer set that a trial learns from."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of predictions and of the loss, as in `knfu`."""
    distribution: Literal["soft", "hard", "shared", "calibrated"] = "soft"
    """Class shares, as in `knfu`: `soft`, `hard`, `calibrated`; `shared` sends label counts to the server."""
    epsilon: Annotated[float, Field(ge=1e-12, le=1)] | None = None
    """Smoothing of a client's class shares; absent: 1e-6, or 1e-2 for `hard`."""
    stale_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """ρ: a client that misses the round is represented by its last knowledge, of age a rounds, with
    weight · ρ^a; absent: it is left out."""

    def __post_init__(self) -> None:
        if len(set(self.betas)) < len(self.betas):
            raise UserError(f"must be different, got {list(self.betas)}", key="fusion.betas")

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            receives={EXPERTS: "M", "targets_*": "M C"},
            guides="each",
            needs={"gradients"},
            label_counts=self.distribution == "shared",
            trials=len(self.betas) if len(self.betas) > 1 else 0,
            trial_share=self.trial_share,
            stale_decay=self.stale_decay,
        )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return each client's targets `[M, C]` for every β, and the experts' classes `[M]` for all."""
        assert knowledge.logits is not None
        q = softmax(knowledge.logits, self.temperature)
        p = distributions.expertise(self.distribution, q, knowledge.label_counts, self.epsilon)
        prior = log_prior(knowledge, self.stale_decay)
        d = kl(p)
        fused = [combine(effectiveness(d, beta, log_prior=prior), q) for beta in self.betas]
        personal = [{_targets(place): own[n] for place, own in enumerate(fused)} for n in range(len(q))]
        if not self.capabilities.trials:
            return Guidance(None, personal=personal)
        everyone = effectiveness(np.zeros((1, len(q))), 0.0, log_prior=prior)
        classes = class_experts(everyone[0], q, p).argmax(axis=1)
        smallest = np.min_scalar_type(q.shape[2] - 1)
        return Guidance(None, personal=personal, shared={EXPERTS: classes.astype(smallest)})

    def apply(self, client: ClientView, guidance: Arrays) -> Distillation:
        """Try all targets, and distil the best."""
        chosen = self._best(client, guidance) if self.capabilities.trials else 0
        client.memory[CHOICE] = np.array(chosen, dtype=np.int64)
        return guidance[_targets(chosen)], None

    def _best(self, client: ClientView, guidance: Arrays) -> int:
        """Return the index of the β with the best trial."""
        experts = guidance[EXPERTS].astype(np.int64)
        tried = max(1, round(self.trial_share * len(experts)))
        order = client.generator("trial").permutation(len(experts))
        rows, others = np.sort(order[:tried]), np.sort(order[tried:])
        asked = others[client.label_counts()[experts[others]] == 0]
        scores = []
        for place in range(len(self.betas)):
            trial = client.trial(guidance[_targets(place)][rows], rows, asked)
            agreed = _share(trial.transfer_logits, experts[asked])
            scores.append(_share(trial.kept_logits, trial.kept_labels) + self.agreement * agreed)
        return int(np.argmax(scores))

    def targets_of(self, client: ClientView, guidance: Arrays) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Return the chosen targets."""
        return guidance[_targets(int(client.memory[CHOICE]))], None

    def taught_samples(self, guidance: Arrays) -> int:
        return len(guidance[_targets(0)])

    def client_metrics(self, client: ClientView) -> dict[str, float]:
        """Return the last chosen β, once there is one."""
        return {"beta": self.betas[int(client.memory[CHOICE])]} if CHOICE in client.memory else {}


def _targets(place: int) -> str:
    return f"targets_{place}"


def _share(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy of logits; 0 without samples."""
    return float((logits.argmax(axis=1) == labels).mean()) if len(labels) else 0.0
