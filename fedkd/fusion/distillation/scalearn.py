"""`scalearn`: learn each client's weights for all others from a few labels.

After Frohmann et al., "ScaLearn: Simple and Highly Parameter-Efficient Task Transfer by Learning to Scale",
arXiv 2310.01217.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge, ServerCost, softmax
from fedkd.fusion.distillation.soft_labels import TemperedLabels
from fedkd.fusion.math.adam import Adam
from fedkd.fusion.math.distribution import expertise
from fedkd.fusion.math.neighbour_weights import effectiveness
from fedkd.fusion.math.probabilities import finite_logits, log_softmax
from fedkd.fusion.math.similarity import kl
from fedkd.fusion.server_cost import RoundExtent
from fedkd.plugins import hyperparameters
from fedkd.randomness import numpy_generator


@hyperparameters
class ScaLearn(ServerCost, TemperedLabels):
    """Sum clients' logits with factors learned for each receiver.

    ::

        K_n[i] = softmax(Σ_m ω_nm z_m[i] / T)           ω starts at `start` · W_nm, KnFu's weights
        v_n(i) = p_n[y_i] / p̄[y_i]                      importance for n, by its class mix
        L(ω_n) = Σ_i v_n(i) CE(Σ_m ω_nm z_m[i], y_i) / Σ_i v_n(i) + λ ‖ω_n − start‖²
        ω      : the best of 100 full-batch steps of Adam, over labelled transfer samples

    Factors may have any sign and sum, so they can sharpen and soften targets. Without steps it is KnFu in
    logits; a single client learns its temperature. With few labels λ keeps ω near KnFu's weights.
    """

    name: ClassVar[str] = "scalearn"
    capabilities: ClassVar[Capabilities] = Capabilities(guides="each", needs={"transfer_labels"})
    paper: ClassVar[str] = "after Frohmann et al., ScaLearn: … Learning to Scale, 2023, arXiv 2310.01217"
    source_note: ClassVar[str] = (
        "the paper scales outputs of adapters in a language model; here clients' logits are scaled"
    )

    beta: Annotated[float, Field(ge=0)] = 10.0
    """β of KnFu's weights, from which the factors start."""
    start: Annotated[float, Field(ge=0, le=1000)] = 2.0
    """Factor of KnFu's weights at the start: means of logits are less certain than each of them."""
    labels: Annotated[int, Field(ge=0)] | None = None
    """Number of labelled transfer samples to learn from, drawn once for the run; absent: all."""
    per_class: bool = False
    """Learn a factor for each class of each sender, C times as many; for more labels than a few per class."""
    steps: Annotated[int, Field(ge=0)] = 100
    """Steps of Adam, each over all labelled samples; 0 leaves the start as it is."""
    lr: Annotated[float, Field(gt=0, le=1e6)] = 1e-2
    """Learning rate of Adam for the factors."""
    pull: Annotated[float, Field(ge=0, le=1e6)] = 0.01
    """λ: how strongly factors are held at their start."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of targets and of the loss; factors are learned at 1."""

    def server_cost(self, extent: RoundExtent) -> float:
        """Return the cost of fused logits for every receiver, forward and backward in each step."""
        labelled = extent.samples if self.labels is None else min(self.labels, extent.samples)
        once = 2.0 * extent.clients**2 * extent.classes
        return once * (extent.samples + 2 * (self.steps + 1) * labelled)

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return K `[N, M, C]`; the weights `[N, N]` are the factors' relative sizes."""
        assert knowledge.logits is not None and knowledge.labels is not None
        z = finite_logits(knowledge.logits).astype(np.float64)
        z -= z.mean(axis=-1, keepdims=True)  # a constant over classes has no effect
        q = softmax(knowledge.logits)
        p = expertise("soft", q)
        start = self.start * effectiveness(kl(p), self.beta)
        scales = np.repeat(start[..., None], z.shape[-1] if self.per_class else 1, axis=-1)
        rows = self._labelled(z.shape[1], knowledge.seed)
        if len(rows):
            y = knowledge.labels[rows]
            counts = p[:, y] / p.mean(axis=0)[y]
            counts /= counts.sum(axis=1, keepdims=True)
            scales = learn_scales(scales, z[:, rows], y, counts, steps=self.steps, lr=self.lr, pull=self.pull)
        fused = softmax(scaled(scales, z), self.temperature)
        amounts = np.abs(scales).mean(axis=-1)
        total = amounts.sum(axis=1, keepdims=True)
        alike = np.full_like(amounts, 1.0 / len(z))
        return Guidance(fused, np.divide(amounts, total, out=alike, where=total > 0))

    def _labelled(self, samples: int, seed: int) -> np.ndarray:
        if self.labels is None or self.labels >= samples:
            return np.arange(samples)
        drawn = numpy_generator(seed, "labelled-samples").permutation(samples)
        return np.sort(drawn[: self.labels])


def scaled(scales: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return ``Σ_m ω_nm z_m``, `[N, M, C]`, of ω `[N, N, 1]` or `[N, N, C]`, receiver first."""
    if scales.shape[-1] == 1:
        return np.tensordot(scales[..., 0], z, axes=1)
    return np.einsum("nmc,mic->nic", scales, z, optimize=True)


def learn_scales(
    start: np.ndarray,
    z: np.ndarray,
    labels: np.ndarray,
    counts: np.ndarray,
    *,
    steps: int,
    lr: float,
    pull: float,
) -> np.ndarray:
    """Return each receiver's scales `[N, N, K]` of least loss on Adam's path; at worst the start.

    Logits z `[N, L, C]` float64 are of samples with `labels` `[L]`; rows of their weights `counts` `[N, L]`
    sum to 1. K is 1 or C; `pull` is λ.
    """
    scales, best = start.copy(), start.copy()
    least = np.full(len(z), np.inf)
    adam = Adam(lr)
    for _ in range(steps + 1):
        losses, gradient = loss_and_gradient(scales, start, z, labels, counts, pull)
        lower = losses < least
        least, best[lower] = np.where(lower, losses, least), scales[lower]
        (scales,) = adam.step([scales], [gradient])
    return best


def loss_and_gradient(
    scales: np.ndarray, start: np.ndarray, z: np.ndarray, labels: np.ndarray, counts: np.ndarray, pull: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return each receiver's loss `[N]` and its gradient in the scales `[N, N, K]` (see `learn_scales`)."""
    log_q = log_softmax(scaled(scales, z))
    everyone = np.arange(len(labels))
    losses = -(counts * log_q[:, everyone, labels]).sum(axis=1)
    wrong = np.exp(log_q)
    wrong[:, everyone, labels] -= 1.0
    wrong *= counts[..., None]
    if scales.shape[-1] == 1:
        gradient = np.tensordot(wrong, z, axes=((1, 2), (1, 2)))[..., None]
    else:
        gradient = np.einsum("nic,mic->nmc", wrong, z, optimize=True)
    apart = scales - start
    return losses + pull * (apart**2).sum(axis=(1, 2)), gradient + 2.0 * pull * apart
