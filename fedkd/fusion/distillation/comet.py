"""COMET: clients with similar predictions form clusters; each distils its cluster's mean."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Knowledge
from fedkd.fusion.math.clustering import cluster
from fedkd.fusion.math.probabilities import finite_logits, softmax
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor


@hyperparameters
class Comet(FusionStrategy):
    """Cluster clients by k-means over their predictions; distil the nearest centroid.

    ::

        centroids = k-means of s_n = softmax(z_n(x)) on the whole transfer set, flattened
        t_n       = the centroid nearest to s_n
        loss      = λ · mean_i ‖s_n(x_i) − t_n[i]‖²     + ce_weight · cross entropy on private samples

    A compromise between one mean for all (`clusters` = 1) and personal weights (`knfu`): clients learn from
    their own cluster only. They minimise both terms at once, as in the paper: `fusion.ce_weight` is 1 by
    default. With 0 a client first trains privately, then learns its centroid.
    """

    name: ClassVar[str] = "comet"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Cho et al., Personalized FL with Clustered Knowledge Transfer, arXiv 2109.08119, 2021"
    )

    clusters: Annotated[int, Field(ge=1)] = 3
    """k: maximum number of groups of similar clients. 1 is the mean for all; N leaves each client alone.
    Start low: a cluster of two teaches little."""
    space: Literal["probabilities", "logits"] = "probabilities"
    """Values to cluster, average and match. `probabilities` treats all models alike. `logits`, nearer to the
    paper, also compares their scale, which may separate architectures."""
    strength: Annotated[float, Field(gt=0)] = 1.0
    """λ: weight of the distance to the centroid, relative to `ce_weight` and as a factor of the learning
    rate. A squared distance of probabilities is at most 2: if clients hardly move, raise λ to 10."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            trains_jointly=True,
            sends="logits",
            guides="each",
            over_graph="each",
            mixes=self.space == "probabilities",
            averages=self.space,
        )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return each client's nearest centroid, `[N, M, C]`, with the weights `[N, N]` of its cluster."""
        assert knowledge.logits is not None
        in_probabilities = self.space == "probabilities"
        s = softmax(knowledge.logits) if in_probabilities else finite_logits(knowledge.logits)
        flat = s.reshape(len(s), -1)
        membership = cluster(flat, self.clusters)
        group = membership.argmax(axis=0)
        centroids = (membership.astype(np.float32) @ flat).reshape(-1, *s.shape[1:])
        if in_probabilities:
            centroids /= centroids.sum(axis=-1, keepdims=True)  # float32 sums of many clients drift off 1
        return Guidance(centroids[group], membership[group], mixed=s if in_probabilities else None)

    def loss(self, student_logits: Tensor, targets: Tensor) -> Tensor:
        """Return ``λ · mean_i ‖s_i − t_i‖²`` of logits `[B, C]` and centroid rows `[B, C]`."""
        s = student_logits.float()
        if self.space == "probabilities":
            s = s.softmax(dim=-1)
        return self.strength * (s - targets.detach().float()).square().sum(dim=-1).mean()

    def probabilities(self, targets: np.ndarray) -> np.ndarray:
        """Return centroids `[M, C]` as probabilities."""
        return targets if self.space == "probabilities" else softmax(targets)
