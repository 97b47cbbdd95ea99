"""`mst`: specialised teachers, chosen per sample by a gate (after arXiv 2507.07015)."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge, ServerCost, softmax
from fedkd.fusion.distillation.competence import sample_losses
from fedkd.fusion.distillation.gate import largest, new_gate, train_gate
from fedkd.fusion.distillation.soft_labels import TemperedLabels
from fedkd.fusion.math.distribution import EPSILON
from fedkd.fusion.math.neighbour_weights import nearest
from fedkd.fusion.math.probabilities import finite_logits
from fedkd.fusion.math.similarity import class_kl, prediction_kl
from fedkd.fusion.server_cost import FORWARDS_PER_TRAINING_STEP, RoundExtent, dense
from fedkd.plugins import hyperparameters
from fedkd.randomness import numpy_generator


@hyperparameters
class MST(ServerCost, TemperedLabels):
    """Choose each sample's teachers by every client's own gate.

    ::

        g(i)   = softmax(relu(z_n(x_i) A + a) B + b)         over the B nearest others; A of 2C units
        L      = mean_i Σ_m g_m(i) ℓ_m(i) + w B Σ_m f_m mean_i g_m(i)
        K_n[i] = Σ_m g_m(i) q_m[i] / Σ_m g_m(i)              over the k largest g, q at temperature T

    ℓ is a teacher's cross entropy to the label, f its share of first choices among samples. The gate uses the
    client's own prediction alone.

    A gate trained through the distillation loss learns the *laziest* teacher, the one closest to the student.
    So it is trained on labels, on the server, from scratch each round. The server sends K: for fixed shares
    its gradient equals that of the weighted sum of losses.
    """

    name: ClassVar[str] = "mst"
    paper: ClassVar[str] = "after MST-Distill: Mixture of Specialized Teachers, 2025, arXiv 2507.07015"
    source_note: ClassVar[str] = (
        "the paper's MaskNets, which adapt each teacher to the student, are absent; the gate is trained on"
        " labels"
    )

    judge: Literal["labels", "consensus"] = "labels"
    """Measure of teachers: true `labels` of the transfer set, or the `consensus` of all other clients."""
    neighbours: Annotated[int, Field(ge=1)] = 4
    """B: number of nearest others as teachers, ties included."""
    divergence: Literal["prediction_kl", "kl"] = "prediction_kl"
    """Distance of predictions by sample, which separates domains, or of class distributions."""
    top: Annotated[int, Field(ge=1)] = 2
    """Number k of teachers of each sample."""
    balance: Annotated[float, Field(ge=0, le=1e9)] = 0.1
    """w: cost of choosing one teacher for everything; very large is even use of all."""
    steps: Annotated[int, Field(ge=0)] = 100
    """Steps of the gate's Adam on the whole transfer set; 0 gives all teachers the same share."""
    lr: Annotated[float, Field(gt=0, le=1e3)] = 1e-2
    """Learning rate of every gate, for Adam."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 4.0
    """T of teachers and of the loss (gate and ℓ are at 1); 4 also teaches how teachers rank other classes."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(guides="each", needs={"transfer_labels"} if self.judge == "labels" else set())

    def server_cost(self, extent: RoundExtent) -> float:
        """Return the cost of training every client's gate."""
        teachers = min(self.neighbours, extent.clients - 1)
        gate = dense(extent.classes, 2 * extent.classes, teachers)
        return FORWARDS_PER_TRAINING_STEP * self.steps * extent.clients * extent.samples * gate

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return K `[N, M, C]`; the weights `[N, N]` are the mean shares of teachers."""
        assert knowledge.logits is not None
        q = softmax(knowledge.logits, self.temperature)
        predicted = softmax(knowledge.logits)
        if self.divergence == "prediction_kl":
            d = prediction_kl(predicted, EPSILON["soft"])
        else:
            d = class_kl(predicted)
        near = nearest(d, self.neighbours) & ~np.eye(len(q), dtype=bool)
        losses = sample_losses(knowledge.logits, knowledge.labels if self.judge == "labels" else None)
        targets, weights = q.copy(), np.eye(len(q))
        for n in range(len(q) if q.shape[1] and len(q) > 1 else 0):
            teachers = np.flatnonzero(near[n])
            shares = self._shares(knowledge.logits[n], losses[teachers].T, knowledge.seed)
            targets[n] = np.einsum("im,mic->ic", shares.astype(np.float32), q[teachers])
            weights[n] = 0.0
            weights[n, teachers] = shares.mean(axis=0)
        return Guidance(targets, weights, distances=d)

    def _shares(self, logits: np.ndarray, losses: np.ndarray, seed: int) -> np.ndarray:
        """Return the teachers' shares `[M, B]` by their losses; all gates begin with the same weights."""
        z = finite_logits(logits).astype(np.float64)
        size = np.sqrt((z**2).mean())
        inputs = z / size if size > 0.0 else z
        gate = new_gate(z.shape[1], losses.shape[1], numpy_generator(seed, "gate"))
        gate = train_gate(gate, inputs, losses, balance=self.balance, steps=self.steps, lr=self.lr)
        return largest(gate.shares(inputs), self.top)
