"""`dlf`: dynamic logits fusion; a client adds its neighbours' changes of logits (arXiv 2406.15480)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Kind, Knowledge, LocalObjective
from fedkd.fusion.distillation.soft_labels import TemperedLabels
from fedkd.fusion.math.client_index import enrol
from fedkd.fusion.math.neighbour_weights import effectiveness, nearest
from fedkd.fusion.math.probabilities import finite_logits, log_softmax, row_kl, softmax
from fedkd.fusion.math.similarity import class_kl
from fedkd.fusion.views import Arrays, ClientView, Network
from fedkd.plugins import hyperparameters

INITIAL = "initial"
BISECTIONS = 30


@hyperparameters
class DLF(LocalObjective, TemperedLabels):
    """Add the neighbours' changes of logits by training to a client's logits.

    ::

        r_m     = logits before the first training, sent once;  Δ_m = z_m − r_m
        α_nm(i) : KL(softmax(z_n + α Δ_m) ‖ softmax z_n) = KL(softmax z_m ‖ softmax r_m), on sample i
        K_n[i]  = softmax((z_n + Σ_{m≠n} W_nm α_nm(i) Δ_m) / T)       W: KnFu's, over the nearest

    A mean of predictions pulls a large model down to small ones. Here a neighbour moves a client's logits,
    sample by sample, as far as training has moved its own. The client's knowledge stays. The left side rises
    with α (its derivative is α times the variance of Δ), so bisection finds α, at most `most`.
    """

    name: ClassVar[str] = "dlf"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="logits, and once those before training",
        kinds={"logits": Kind.TRANSFER_LOGITS, INITIAL: Kind.SAMPLE_LOGITS},
        upload_changes=True,
        guides="each",
    )
    paper: ClassVar[str] = (
        "after Fan et al., On Giant's Shoulders: Effortless Weak to Strong by Dynamic Logits Fusion,"
        " NeurIPS 2024"
    )
    source_note: ClassVar[str] = (
        "the paper fuses logits while a language model decodes; here clients distil the fused logits"
    )

    beta: Annotated[float, Field(ge=0)] = 10.0
    """β of KnFu's weights W: how sharply a distant client loses weight. 0 weighs all neighbours equally."""
    neighbours: Annotated[int, Field(ge=0)] = 4
    """Number of nearest neighbours, ties included; 0 is local training. Each costs 30 predictions of the
    transfer set."""
    strength: Annotated[float, Field(ge=0, le=1000)] | None = None
    """α of every neighbour and sample; absent: matched to the neighbour's own movement. 0.5 and 1 are the
    controls."""
    most: Annotated[float, Field(ge=0, le=1000)] = 1.5
    """Largest strength α that the search may give."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Temperature T of targets and of the loss."""

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return K `[N, M, C]`, personal, with W `[N, N]`."""
        assert knowledge.logits is not None
        d = class_kl(softmax(knowledge.logits))
        keep = nearest(d, self.neighbours)
        weights = effectiveness(d, self.beta, keep=keep)
        z = finite_logits(knowledge.logits).astype(np.float64)
        initial, kept = _recall(memory, knowledge.clients, z, knowledge.payload[INITIAL])
        shifts = z - initial
        moved = row_kl(np.exp(log_softmax(z)), log_softmax(initial))
        fused = np.empty(z.shape, dtype=np.float32)
        for n in range(len(z)):
            own = z[n].copy()
            for m in np.flatnonzero(keep[n]):
                if m != n:
                    own += weights[n, m] * self._strength(z[n], shifts[m], moved[m])[:, None] * shifts[m]
            fused[n] = softmax(own, self.temperature)
        return Guidance(fused, weights, kept, distances=d)

    def _strength(self, z: np.ndarray, shift: np.ndarray, moved: np.ndarray) -> np.ndarray:
        if self.strength is not None:
            return np.full(len(z), self.strength)
        return matched_strength(z, shift, moved, self.most)

    def before_training(self, client: ClientView) -> None:
        """Store the predictions before the first training."""
        if INITIAL not in client.memory:
            client.memory[INITIAL] = client.logits()

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return logits, and initial ones: `[M, C]` the first time, then `[0, C]`."""
        initial = client.memory[INITIAL] if INITIAL in client.memory else client.logits()
        client.memory[INITIAL] = initial[:0]
        return super().upload(client) | {INITIAL: initial}

    def misfit(self, upload: Arrays, sizes: Mapping[str, int], network: Network | None) -> str | None:
        """Refuse initial logits of only some transfer samples."""
        told, samples = len(upload[INITIAL]), len(upload["logits"])
        if told in (0, samples):
            return None
        return f"array {INITIAL} has {told} rows, must have {samples} or 0"


def matched_strength(z: np.ndarray, shift: np.ndarray, moved: np.ndarray, most: float) -> np.ndarray:
    """Return each sample's α of ``KL(softmax(z + α Δ) ‖ softmax z) = moved``, at most `most`, `[M]`.

    `z` are the receiver's logits and `shift` is Δ, `[M, C]` float64; α is 0 where Δ is. `moved` is `[M]`.
    """
    log_q = log_softmax(z)

    def reached(alpha: np.ndarray) -> np.ndarray:
        return row_kl(np.exp(log_softmax(z + alpha[:, None] * shift)), log_q)

    low, high = np.zeros(len(z)), np.full(len(z), float(most))
    short = reached(high) < moved
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_far = reached(middle) >= moved
        low, high = np.where(too_far, low, middle), np.where(too_far, middle, high)
    return np.where(shift.any(axis=-1), np.where(short, most, low), 0.0)


def _recall(
    memory: Mapping[str, np.ndarray], clients: Sequence[int], logits: np.ndarray, sent: Sequence[np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return clients' predictions before training, `[N, M, C]` float64, and the memory.

    A client that never sent them gets its present ones, without a change.
    """
    roster = enrol(memory, clients)
    everyone = np.zeros((len(roster.clients), *logits.shape[1:]), dtype=np.float32)
    everyone[roster.present] = logits
    if len(roster.known):
        everyone[roster.known] = memory[INITIAL]
    for place, initial in zip(roster.present, sent, strict=True):
        if len(initial):
            everyone[place] = finite_logits(initial)
    kept = {"clients": roster.clients, INITIAL: everyone}
    return everyone[roster.present].astype(np.float64), kept
