"""Common form of methods with class means: a mean per label up, means over clients down."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fedkd.fusion import Capabilities, FusionStrategy, Kind, Knowledge
from fedkd.fusion.forms import check_feature_widths
from fedkd.fusion.views import ClientView

if TYPE_CHECKING:
    from torch import Tensor

PROTOTYPES = Capabilities(
    sends="mean features per class",
    kinds={"prototypes": Kind.FEATURES, "label_counts": Kind.LABEL_COUNTS},
    shapes={"prototypes": "C F"},
    receives={"prototypes": "C F", "owners": "C"},
    guides="all_alike",
    needs={"gradients", "features", "equal_features"},
    uses_local_loss=True,
    uses_transfer_set=False,
    label_counts=True,
)
"""Capabilities of a strategy whose local loss takes mean features of each class."""
OWNED = {"prototypes": Kind.FEATURES, "owned": Kind.LABEL_COUNTS}
"""Kinds of an upload that tells the owned classes, and no numbers of samples."""


class LabelMeans(FusionStrategy):
    """Base of strategies that exchange means per label."""

    mean_of: ClassVar[Literal["features", "logits"]] = "features"

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return `prototypes` `[C, F]` or `label_logits` `[C, C]`, and `label_counts` or `owned` `[C]`."""
        name = "prototypes" if self.mean_of == "features" else "label_logits"
        means, counts = {name: client.class_means(self.mean_of)}, client.label_counts()
        if self.capabilities.label_counts:
            return means | {"label_counts": counts}
        return means | {"owned": (counts > 0).astype(np.uint8)}


def stacked_features(knowledge: Knowledge, strategy: str, name: str = "prototypes") -> np.ndarray:
    """Return the clients' mean features, `[N, C, F]`; a `UserError` if F differs."""
    uploads = knowledge.payload[name]
    check_feature_widths(strategy, knowledge.clients, [features.shape[1] for features in uploads])
    return np.stack(uploads)


def owned_prototypes(knowledge: Knowledge, strategy: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the prototypes of owned classes, `[S, F]`, and their classes `[S]`, by client."""
    assert knowledge.label_counts is not None
    clients, classes = np.nonzero(knowledge.label_counts)
    return stacked_features(knowledge, strategy)[clients, classes], classes


def owners_of(counts: np.ndarray) -> np.ndarray:
    """Return the number of clients that own each class, `[C]` int32, of label counts `[N, C]`."""
    return (counts > 0).sum(axis=0, dtype=np.int32)


def distance_to_means(values: Tensor, labels: Tensor, means: Tensor, owned: Tensor) -> Tensor:
    """Return ``mean ‖v − mean[y]‖² / K`` of values `[B, K]`; 0 for labels without an owner.

    `means` are `[C, K]`, `owned` `[C]` bool.
    """
    import torch

    from fedkd.training import logits_mse

    known = owned.to(labels.device)[labels, None]
    return logits_mse(values, torch.where(known, means.to(labels.device)[labels], values.float()))


def label_means(values: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the mean of `values` `[S, K]` over the samples of each label, `[C, K]` float32; else 0."""
    sums = np.zeros((classes, values.shape[1]))
    np.add.at(sums, labels, values)
    counts = np.bincount(labels, minlength=classes)
    return (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)


def mean_by_label(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return ``Σ_n w[n, c] v[n, c] / Σ_n w[n, c]`` of v `[N, C, K]`, w `[N, C]`; 0 without weight."""
    total = np.einsum("nc,nck->ck", weights, values, dtype=np.float64)
    return _divide(total, weights.sum(axis=0, dtype=np.float64))


def mean_by_label_of_others(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return, for each client, `mean_by_label` over all the others, `[N, C, K]` float32.

    Differences to the total would keep rounding errors of the client's own values, which may be far larger.
    """
    totals = _sum_of_others(weights[..., None].astype(np.float64) * values)
    return _divide(totals, _sum_of_others(weights.astype(np.float64)))


def _sum_of_others(array: np.ndarray) -> np.ndarray:
    others = np.zeros_like(array)
    np.cumsum(array[:-1], axis=0, out=others[1:])
    others[:-1] += np.cumsum(array[:0:-1], axis=0)[::-1]
    return others


def _divide(totals: np.ndarray, weights: np.ndarray) -> np.ndarray:
    mean = np.divide(totals, weights[..., None], out=np.zeros_like(totals), where=weights[..., None] > 0)
    return mean.astype(np.float32)
