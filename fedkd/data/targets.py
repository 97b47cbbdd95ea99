"""Targets of regression: their scale, and their quantile bins."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from fedkd.data.normalise import SMALLEST_STD
from fedkd.errors import UserError, refuse_if

Head = Literal["gaussian", "mean"]
LARGEST_TARGET = 1e15
LOG_VARIANCE = (-8.0, 8.0)
"""Bounds of a model's log σ², of standardised targets."""
BINS = 10
"""Quantile bins of the first target by default, for partitions and figures."""


@dataclass(frozen=True, eq=False)
class TargetScale:
    """Mean and standard deviation [O] float64 of the train split's targets; `names` has the O targets.

    Models predict standardised targets. With the `gaussian` head their outputs are [n, 2·O]: μ and then
    log σ². With `mean` they are μ alone, [n, O].
    """

    names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    edges: np.ndarray
    """Inner edges of `BINS` quantile bins of the first target, in its unit."""
    head: Head = "gaussian"

    @property
    def bin_names(self) -> tuple[str, ...]:
        """Names of the bins, for figures of clients' targets."""
        ends = [f"{edge:.4g}" for edge in self.edges]
        inner = [f"{low} to {high}" for low, high in pairwise(ends)]
        return (f"below {ends[0]}", *inner, f"from {ends[-1]}") if ends else ("all",)

    def bins(self, targets: np.ndarray) -> np.ndarray:
        """Return the bin [n] int64 of standardised targets [n, O]."""
        return np.searchsorted(self.edges, self.original(targets)[:, 0], side="right").astype(np.int64)

    @property
    def outputs(self) -> int:
        """Number of outputs of a model."""
        return len(self.names) * (2 if self.head == "gaussian" else 1)

    def distributions(self, outputs: np.ndarray) -> np.ndarray:
        """Return means and variances [n, 2, O] float64 of outputs, in the targets' unit; NaN: no variance."""
        mean, variance = split_outputs(outputs, self.head)
        spread = variance * self.std**2 if self.head == "gaussian" else np.full_like(mean, np.nan)
        return np.stack([self.original(mean), spread], axis=1)

    def standardise(self, targets: np.ndarray) -> np.ndarray:
        """Return targets [n, O] with zero mean and unit variance, float32."""
        return ((targets - self.mean) / self.std).astype(np.float32)

    def original(self, values: np.ndarray) -> np.ndarray:
        """Return standardised targets or means [n, O] in their unit, float64."""
        return values.astype(np.float64) * self.std + self.mean


def split_outputs(outputs: np.ndarray, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Return μ and σ² [..., O] float64 of a model's outputs; σ² is 1 with the head `mean`."""
    values = outputs.astype(np.float64)
    if head == "mean":
        return values, np.ones_like(values)
    mean, log_variance = np.split(values, 2, axis=-1)
    return mean, np.exp(np.clip(log_variance, *LOG_VARIANCE))


def join_outputs(mean: np.ndarray, variance: np.ndarray, head: Head) -> np.ndarray:
    """Return outputs float32 of μ and σ² [..., O], the inverse of `split_outputs`."""
    if head == "mean":
        return mean.astype(np.float32)
    return np.concatenate([mean, np.clip(np.log(variance), *LOG_VARIANCE)], axis=-1).astype(np.float32)


def measure_targets(names: tuple[str, ...], targets: np.ndarray, head: Head) -> TargetScale:
    """Return the scale of training targets [n, O]; that of constant targets is 1."""
    mean, std = targets.mean(axis=0), targets.std(axis=0)
    return TargetScale(names, mean, np.where(std < SMALLEST_STD, 1.0, std), target_edges(targets, BINS), head)


def check_targets(values: Any, what: str, samples: int, key: str) -> np.ndarray:
    """Return targets [n, O] float64; a `UserError` names the first bad one."""
    try:
        y = np.asarray(values)
    except Exception as error:  # lists of unequal lengths
        raise UserError(f"{what} must be an array of numbers", key=key) from error
    y = y[:, None] if y.ndim == 1 else y
    told = f"{what} must be numeric targets [n] or [n, O], got {y.dtype} of shape {y.shape}"
    refuse_if(y.dtype.kind not in "uif" or y.ndim != 2 or y.shape[1] == 0, told, key)
    refuse_if(len(y) != samples, f"{what} must have targets of {samples} samples, got {len(y)}", key)
    y = y.astype(np.float64)
    bad = ~(np.abs(y) <= LARGEST_TARGET)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        told = f"{what}, row {row + 1} holds {y[row, column]:g}; targets must be within ±{LARGEST_TARGET:g}"
        raise UserError(told, key=key)
    return y


def target_edges(targets: np.ndarray, bins: int) -> np.ndarray:
    """Return the inner edges, ascending, of quantile bins of the first target of [n, O] or [n]."""
    first = targets if targets.ndim == 1 else targets[:, 0]
    return np.unique(np.quantile(first, np.arange(1, bins) / bins))


def target_bins(targets: np.ndarray, bins: int) -> np.ndarray:
    """Return the quantile bin [n] int64 of the first target of every sample."""
    first = targets if targets.ndim == 1 else targets[:, 0]
    _, codes = np.unique(
        np.searchsorted(target_edges(targets, bins), first, side="right"), return_inverse=True
    )
    return codes.astype(np.int64)
