"""Metrics of classification and of regression.

A metric is a pure function of probabilities ``[n, C]`` float64 and true classes ``[n]`` int64, without units
unless it says so. It is NaN where it is not defined. The predicted class is the most probable one. More is
better of plug-ins, unless the function has an attribute `lower_is_better` that is true.

In regression, it is a function of means and variances ``[n, 2, O]`` and of targets ``[n, O]``, float64 both
and in the targets' unit. Variances are NaN with the head `mean`.
"""

from collections.abc import Callable, Mapping
from math import isinf, nan
from numbers import Real
from typing import Any

import numpy as np

from fedkd.errors import described
from fedkd.plugins import Registry, contain_plugin

MetricFunction = Callable[[np.ndarray, np.ndarray], float]

METRICS = Registry(
    "metric",
    {
        name: f"fedkd.training.metrics:{name}"
        for name in (
            *("accuracy", "macro_f1", "balanced_accuracy", "auroc", "ece", "nll", "brier"),
            *("mae", "rmse", "r2", "coverage"),
        )
    },
    group="fedkd.metrics",
    aliases={"auc": "auroc", "log_loss": "nll", "brier_score": "brier"},
)

LOWER_IS_BETTER = frozenset({"ece", "nll", "brier", "mae", "rmse"})
"""Built-in metrics of which less is better."""
ECE_BINS = 15
CENTRAL_90 = 1.6448536269514722
"""Half width of the central 90 % interval, in standard deviations."""
SMALLEST = float(np.finfo(np.float64).tiny)


def accuracy(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Return the share of right predictions; higher is better, always recorded."""
    return float((probabilities.argmax(axis=1) == targets).mean())


def macro_f1(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Return the macro F1 in [0, 1], the mean over classes among targets or predictions; higher is better.

    The F1 of a class is ``2 TP / (2 TP + FP + FN)`` (van Rijsbergen, Information Retrieval, 1979). The mean
    is scikit-learn's.
    """
    from sklearn.metrics import f1_score

    return float(f1_score(targets, probabilities.argmax(axis=1), average="macro"))


def balanced_accuracy(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Return the balanced accuracy in [0, 1]: the mean recall of the classes among targets; higher is better.

    Brodersen et al., The Balanced Accuracy and Its Posterior Distribution, 2010.
    """
    from sklearn.metrics import recall_score

    predicted = probabilities.argmax(axis=1)
    return float(recall_score(targets, predicted, labels=np.unique(targets), average="macro"))


def auroc(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Return the area under the ROC curve in [0, 1], one class against the rest; higher is better.

    It is the unweighted mean over the classes among targets; NaN unless there are at least two (Fawcett, An
    Introduction to ROC Analysis, 2006).
    """
    from sklearn.metrics import roc_auc_score

    present = np.unique(targets)
    if len(present) < 2:
        return nan
    return float(np.mean([roc_auc_score(targets == label, probabilities[:, label]) for label in present]))


def ece(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Return the expected calibration error in [0, 1], over 15 bins of equal width; lower is better.

    ``ECE = Σ_b (n_b / n) |acc_b − conf_b|``, where bin b has the n_b samples whose largest probability is in
    ``((b − 1) / 15, b / 15]``, acc_b is their accuracy, conf_b their mean largest probability (Guo et al.,
    On Calibration of Modern Neural Networks, 2017).
    """
    confidence = probabilities.max(axis=1)
    gaps = (probabilities.argmax(axis=1) == targets) - confidence
    bins = np.ceil(confidence * ECE_BINS).astype(np.int64)
    return float(np.abs(np.bincount(bins, weights=gaps)).sum() / len(targets))


def nll(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the targets, in nats; lower is better.

    ``NLL = −(1 / n) Σ_i log p_i[y_i]``. A probability of 0 counts as the smallest normal float64. In
    regression it is that of the Gaussian density, ``mean ½ [log 2πσ² + (y − μ)²/σ²]``.
    """
    if probabilities.ndim == 3:
        mean, variance = probabilities[:, 0], probabilities[:, 1]
        return float(0.5 * (np.log(2 * np.pi * variance) + (targets - mean) ** 2 / variance).mean())
    likelihood = probabilities[np.arange(len(targets)), targets]
    return float(-np.log(np.maximum(likelihood, SMALLEST)).mean())


def brier(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Return the Brier score in [0, 2], the mean squared distance to the targets; lower is better.

    ``BS = (1 / n) Σ_i Σ_c (p_i[c] − [y_i = c])²`` (Brier, Verification of Forecasts Expressed in Terms of
    Probability, 1950).
    """
    squares = (probabilities - np.eye(probabilities.shape[1])[targets]) ** 2
    return float(squares.sum(axis=1).mean())


def mae(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean absolute error ``mean |μ − y|``, in the targets' unit; lower is better."""
    return float(np.abs(predictions[:, 0] - targets).mean())


def rmse(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Return the root mean squared error ``√mean (μ − y)²``, in the targets' unit; lower is better."""
    return float(np.sqrt(((predictions[:, 0] - targets) ** 2).mean()))


def r2(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Return ``1 − Σ (y − μ)² / Σ (y − ȳ)²``, at most 1, the mean over targets; higher is better.

    It is NaN if a target is constant.
    """
    spread = ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    if not (spread > 0).all():
        return nan
    return float((1.0 - ((targets - predictions[:, 0]) ** 2).sum(axis=0) / spread).mean())


def coverage(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Return the share of targets inside the central 90 % interval ``μ ± 1.645 σ``; 0.9 is right."""
    half = CENTRAL_90 * np.sqrt(predictions[:, 1])
    return float((np.abs(targets - predictions[:, 0]) <= half).mean())


def lower_is_better(name: str, function: MetricFunction) -> bool:
    """Return whether less is better of a metric, built-in or a plug-in."""
    return name in LOWER_IS_BETTER or bool(getattr(function, "lower_is_better", False))


def measure_metrics(
    metrics: Mapping[str, MetricFunction], logits: np.ndarray, targets: np.ndarray
) -> dict[str, float]:
    """Return the value of each metric, by name, on logits ``[n, C]`` and classes ``[n]``.

    All are NaN without samples, and for logits that are no numbers.
    """
    if not metrics or not len(targets):
        return dict.fromkeys(metrics, nan)
    z = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return measure_predictions(metrics, p, targets.astype(np.int64))


def measure_predictions(
    metrics: Mapping[str, MetricFunction], p: np.ndarray, y: np.ndarray
) -> dict[str, float]:
    """Return the value of each metric, by name, on the arrays that metrics get; p has at least one sample."""
    if not np.isfinite(p if p.ndim == 2 else p[:, 0]).all():
        return dict.fromkeys(metrics, nan)
    p.flags.writeable = y.flags.writeable = False
    return {name: _number(name, function, p, y) for name, function in metrics.items()}


def _number(name: str, function: Callable[..., Any], p: np.ndarray, y: np.ndarray) -> float:
    try:
        with contain_plugin():
            value = function(p, y)
    except Exception as error:
        raise RuntimeError(f"metric '{name}' raised {described(error)}") from error
    if isinstance(value, bool) or not isinstance(value, Real):
        kind = type(value).__name__
        raise TypeError(f"metric '{name}' returned a {kind}; must be a number, NaN where it is not defined")
    if isinf(value):
        raise ValueError(f"metric '{name}' is {float(value)}; must be finite, or NaN where it is not defined")
    return float(value)
