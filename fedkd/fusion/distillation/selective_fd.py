"""Selective-FD: clients select familiar samples, the server unambiguous ones.

Shao, Wu and Zhang, Nature Communications 15, 349, 2024, arXiv 2304.01731.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Kind, Knowledge, softmax
from fedkd.fusion.distillation.confidence import FAMILIARITY, ambiguity
from fedkd.fusion.distillation.soft_labels import SoftLabels
from fedkd.fusion.views import ClientView
from fedkd.plugins import hyperparameters


@hyperparameters
class SelectiveFD(SoftLabels):
    """Average each sample over clients that are familiar with it; drop ambiguous samples.

    ::

        S_n  = {i : score(z_n(x_i)) ≥ τ_n}               in-distribution for client n; uploaded
        q̄_i  = mean over {n : i ∈ S_n} of softmax(z_n(x_i))
        keep i where ‖q̄_i − one-hot(q̄_i)‖₁ ≤ ambiguity  the server's selector

    A skewed client predicts its few classes with confidence on any image, so it counts only for samples like
    its own data. The paper's clients estimate a density ratio by kernels on raw inputs. Here a score of the
    logits is compared with its quantile on the training samples.
    """

    name: ClassVar[str] = "selective_fd"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="logits of the samples it knows",
        kinds={"samples": Kind.INDICES, "sample_logits": Kind.SAMPLE_LOGITS},
        shapes={"samples": "k<M"},
        guides="all_alike",
        weighs_age=True,
        over_graph="each",
    )
    paper: ClassVar[str] = (
        "Shao, Wu and Zhang, Selective knowledge sharing for privacy-preserving federated distillation"
        " without a good teacher, Nature Communications 15, 2024"
    )

    selector: Literal["energy", "confidence"] = "energy"
    """Score of a known sample: `energy` (log Σ exp of its logits, which also falls if no class fits) or
    `confidence` (log of the largest probability, independent of the scale of logits)."""
    quantile: Annotated[float, Field(ge=0, le=1)] = 0.1
    """A client votes on samples that score above this quantile of its own training samples; 0 is the most
    generous. Models are surer of training samples, so lower it if few clients vote."""
    threshold: float | None = None
    """One score for every client instead of the quantile (`confidence`: log 0.9 is −0.105); absent: the
    quantile. A very low one lets all vote on all: the mean of probabilities."""
    ambiguity: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Largest L1 distance of a mean prediction to its one-hot, 2 (1 − max q̄): 1 keeps samples with at least
    half for one class, 2 keeps all. Lower it for fewer and cleaner targets; raise it for young models."""

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return familiar samples' indices, `samples` `[K]` int32, and `sample_logits` `[K, C]`."""
        logits, score = client.logits(), FAMILIARITY[self.selector]
        least = self.threshold
        if least is None:
            own = score(client.private_logits())
            # A client without own samples sends none: comparisons with NaN are false.
            least = np.quantile(own, self.quantile) if len(own) else np.nan
        samples = np.flatnonzero(score(logits) >= least).astype(np.int32)
        return {"samples": samples, "sample_logits": logits[samples]}

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return probabilities `[K, C]` of the familiar and unambiguous `samples` `[K]`."""
        samples, logits = knowledge.payload["samples"], knowledge.payload["sample_logits"]
        size = max((int(indices[-1]) + 1 for indices in samples if len(indices)), default=0)
        votes, total = np.zeros(size), np.zeros((size, logits[0].shape[-1]))
        fresh = np.ones(len(logits)) if knowledge.freshness is None else knowledge.freshness
        for indices, z, weight in zip(samples, logits, fresh, strict=True):
            votes[indices] += weight
            total[indices] += weight * softmax(z)
        known = np.flatnonzero(votes)
        mean = total[known] / votes[known, None]
        clear = ambiguity(mean) <= self.ambiguity
        if not clear.any():
            return Guidance(targets=None)
        return Guidance(
            targets=mean[clear].astype(np.float32), shared={"samples": known[clear].astype(np.int32)}
        )
