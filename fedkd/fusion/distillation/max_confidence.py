"""`max_confidence`: the most confident client is each sample's teacher."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge, softmax
from fedkd.fusion.distillation.confidence import log_confidence
from fedkd.fusion.distillation.soft_labels import TemperedLabels
from fedkd.fusion.math.neighbour_weights import effectiveness
from fedkd.fusion.math.similarity import class_kl
from fedkd.plugins import hyperparameters


@hyperparameters
class MaxConfidence(TemperedLabels):
    """Distil the most confident prediction of each transfer sample.

    ::

        conf_m(x_i) = max_c q_m[i, c], or q_m[i, y_i] where labels are known
        w_n(i)      = argmax_m W_nm · conf_m(x_i)           itself among the candidates; it wins ties
        target of n = q_w(i)[i]

    The paper transfers between two pretrained models. The student is among the candidates, which prevents
    forgetting: if it is most confident, its own prediction is the target. Here every other client is a
    teacher, equally (W = 1) or by KnFu's weights (`beta`). A confidently wrong client teaches its error, so
    labels help, as does a moderate `beta` if clients have few classes.
    """

    name: ClassVar[str] = "max_confidence"
    paper: ClassVar[str] = "Roth et al., Fantastic Gains and Where to Find Them, ICLR 2024, arXiv 2310.17653"

    confidence: Literal["maximum", "true_class"] = "maximum"
    """Confidence: the `maximum` probability (unsupervised), or the probability of the `true_class`, which
    needs labels of the transfer set on the server; a confident error cannot win."""
    beta: Annotated[float, Field(ge=0)] | None = None
    """β of KnFu's effectiveness weights, which multiply confidences; absent: all clients weigh the same.
    With confidences near 1 even a small β decides: start at 0.1 / (typical distance)."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of targets and of the loss (confidences are taken at 1). Above 1 it also teaches how the most
    confident client ranks the other classes."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            guides="each",
            over_graph="each",
            needs=frozenset({"transfer_labels"} if self.confidence == "true_class" else ()),
        )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return targets `[N, M, C]`, and each teacher's share of samples, `[N, N]`."""
        assert knowledge.logits is not None
        logits, labels = knowledge.logits, knowledge.labels if self.confidence == "true_class" else None
        log_weights = np.zeros((len(logits), len(logits)))
        if self.beta is not None:
            weights = effectiveness(class_kl(softmax(logits)), self.beta)
            with np.errstate(divide="ignore"):  # a weight that underflowed to 0 never wins
                log_weights = np.log(weights)
        winner = _winners(log_confidence(logits, labels), log_weights)
        q = softmax(logits, self.temperature)
        clients, samples, _ = q.shape
        share = np.stack([np.bincount(row, minlength=clients) / samples for row in winner])
        return Guidance(targets=q[winner, np.arange(samples)], weights=share)


def _winners(confidence: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """Return receiver n's teacher of sample i, `[N, M]`: itself in a tie, else the first of the best.

    Log-confidences are `[N, M]`, log-weights `[N, N]`. One receiver at a time: no N×N×M array exists.
    """
    senders_last = np.ascontiguousarray(confidence.T)
    everyone = np.arange(len(senders_last))
    winner = np.empty(confidence.shape, dtype=np.int64)
    for n, row in enumerate(log_weights.astype(confidence.dtype)):
        score = senders_last + row
        best = score.argmax(axis=1)
        winner[n] = np.where(score[:, n] >= score[everyone, best], n, best)
    return winner
