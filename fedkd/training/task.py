"""The task of a federation: outputs, loss, form of knowledge and metrics.

Listings read it, so that it imports torch only when a loss or a score is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from math import nan
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedkd.data import TargetScale, split_outputs
from fedkd.scenario import Data
from fedkd.training.metrics import MetricFunction, lower_is_better, measure_metrics, measure_predictions

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fedkd.training.evaluate import Score


@dataclass(frozen=True)
class Task:
    """What clients learn.

    Attributes:
        knowledge: Form of predictions on the transfer set: class probabilities, or Gaussians.
        loss_name: Name of the loss in `fedkd.training.losses`.
        metrics: Built-in metrics, the default one first.
        counts: True if right answers are counted.
    """

    name: str
    knowledge: Literal["classes", "gaussian"]
    loss_name: Literal["cross_entropy", "gaussian_nll", "squared_error"]
    metrics: tuple[str, ...]
    counts: bool = False

    @property
    def metric(self) -> str:
        """Default metric."""
        return self.metrics[0]

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Mean loss of a model's outputs and labels, scalar with gradients."""
        function: Callable[[Tensor, Tensor], Tensor]
        function = getattr(import_module("fedkd.training.losses"), self.loss_name)
        return function

    def measure(
        self,
        metrics: Mapping[str, MetricFunction],
        outputs: np.ndarray,
        labels: np.ndarray,
        scale: TargetScale | None,
    ) -> Score:
        """Return the score of outputs on labels; the first of `metrics` decides about gains in regression."""
        from fedkd.training.evaluate import Score, score

        if scale is None:
            return replace(score(outputs, labels), metrics=measure_metrics(metrics, outputs, labels))
        nothing = np.zeros(0, dtype=bool)
        if not len(labels):
            return Score(nan, nan, nothing, dict.fromkeys(metrics, nan), nan)
        mean, variance = split_outputs(outputs, scale.head)
        squares = (labels.astype(np.float64) - mean) ** 2
        loss = squares if scale.head == "mean" else 0.5 * (np.log(variance) + squares / variance)
        found = measure_predictions(metrics, scale.distributions(outputs), scale.original(labels))
        main = next(iter(metrics))
        sign = -1.0 if lower_is_better(main, metrics[main]) else 1.0
        return Score(nan, float(loss.mean()), nothing, found, sign * found[main])


CLASSIFICATION = Task(
    "classification",
    "classes",
    "cross_entropy",
    ("accuracy", "macro_f1", "balanced_accuracy", "auroc", "ece", "nll", "brier"),
    counts=True,
)
REGRESSION = {
    "gaussian": Task("regression", "gaussian", "gaussian_nll", ("rmse", "mae", "r2", "nll", "coverage")),
    "mean": Task("regression", "gaussian", "squared_error", ("rmse", "mae", "r2")),
}
"""Tasks of regression by their head; without variances there are fewer metrics."""


def task_of(data: Data) -> Task:
    """Return the task of a scenario's `[data]`."""
    return REGRESSION[data.head or "gaussian"] if data.is_regression else CLASSIFICATION
