"""How fast a task is learned: figures of the accuracy on it while it is being learned."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def learning_area(curve: ArrayLike) -> float:
    """Return (1/E) Σ_e curve[e]: how early a task is learned, as the area under its learning curve.

    The curve is the accuracy on a task at E evenly spaced moments (epochs or federated rounds) while that
    task is being learned, from just before its first step to its end, both included. Each value is the height
    of one of E bars of equal width that together span an x axis of length 1, so the area is the plain mean:
    it lies between the curve's extremes, and a task mastered from the start has an area equal to its
    accuracy. It is not the trapezium rule, which would count the two ends half.

    This is FWT_k of LIBERO (Liu et al., 2023), the mean of c_{k,k,e} over e = 0, 5, …, 50, but for one point:
    they keep the best checkpoint of a task and so hold the curve at its maximum from there on, whereas a
    learner here goes on from where it ended and its curve is taken as measured. The two agree on a curve that
    never falls.

    Args:
        curve: Accuracy on the task while it is being learned, `[E]`, E ≥ 1.

    Raises:
        ValueError: `curve` is not one-dimensional or is empty.
    """
    return float(_curve(curve).mean())


def epochs_to_90(curve: ArrayLike) -> float:
    """Return the first moment at which 90 % of the curve's last accuracy is reached; 0: before any step.

    How long a task takes to learn, for runs that end at about the same accuracy: measured against its own
    end, a run that learns less is done sooner. Moments are those of `learning_area`, hence whole epochs (or
    rounds); nothing is interpolated.

    Args:
        curve: Accuracy on the task while it is being learned, `[E]`, E ≥ 1.

    Returns:
        NaN if an entry was not measured.

    Raises:
        ValueError: `curve` is not one-dimensional or is empty.
    """
    values = _curve(curve)
    if np.isnan(values).any():
        return float("nan")
    return float(np.argmax(values >= 0.9 * values[-1]))


def _curve(curve: ArrayLike) -> Array:
    values = np.asarray(curve, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"curve must have shape [E] with E ≥ 1, got {list(values.shape)}")
    return values
