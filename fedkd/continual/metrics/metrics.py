"""Continual metrics: one name, one definition.

Libraries give one name to different metrics, so every function carries its formula. Arguments mean
the same everywhere:

- ``R[i, j]`` is the accuracy on task j after learning task i, `[T, T]`, 0-based in the order of learning.
- ``b[j]`` is the accuracy of the untrained model on task j, `[T]`.
- ``learned`` says which tasks were learned, `[T]` of bool, the set ``L``; None: all of them.
- Arguments in per cent give metrics in per cent, but for `epochs_to_90`.
- A wrong shape raises `ValueError`. Everything is computed in float64.

Three rules hold throughout:

* A client that missed a whole task has not learned it. So comparisons with the moment of learning are means
  over ``j ∈ L``, and `fwt` is one over tasks after a learned one. Accuracies are means over all tasks.
* NaN marks an entry that was not measured. Only metrics that need it are NaN.
* A mean over nothing is NaN: `bwt`, `fwt`, `forgetting`, `forgetting_first_last` and `nbt` of a single task.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def average_accuracy(R: ArrayLike) -> float:
    """Return mean_j R[T−1, j]: the accuracy over all tasks at the end, learned or not."""
    return mean_or_nan(_square(R)[-1])


def average_incremental_accuracy(R: ArrayLike) -> float:
    """Return mean_i mean_{j≤i} R[i, j]: accuracy over the tasks seen so far (Rebuffi et al., 2017, iCaRL)."""
    R = _square(R)
    return mean_or_nan(np.array([R[i, : i + 1].mean() for i in range(len(R))]))


def bwt(R: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{j∈L, j<T−1} (R[T−1, j] − R[j, j]): backward transfer (Lopez-Paz & Ranzato, 2017).

    Negative: earlier tasks were forgotten. Some papers call the average over all pairs i > j BWT, or
    −`forgetting`.
    """
    R = _square(R)
    return mean_or_nan((R[-1, :-1] - np.diagonal(R)[:-1])[_learned(learned, len(R))[:-1]])


def fwt(R: ArrayLike, b: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{j>min L} (R[j−1, j] − b[j]): forward transfer (Lopez-Paz & Ranzato, 2017).

    CUBER's FWT is `gain_over_single`, LIBERO's is `learning_area`.
    """
    R = _square(R)
    follows = np.logical_or.accumulate(_learned(learned, len(R)))[:-1]
    return mean_or_nan((np.diagonal(R, offset=1) - _one_a_task("b", b, len(R))[1:])[follows])


def gain_over_single(R: ArrayLike, single: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{j∈L} (R[j, j] − single[j]): the gain of the stream on a task when it is learned.

    CUBER (Lin et al., 2022) calls it FWT. `single` is the accuracy `[T]` of models trained on one task each.
    """
    R = _square(R)
    return mean_or_nan((np.diagonal(R) - _one_a_task("single", single, len(R)))[_learned(learned, len(R))])


def forgetting(R: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{j∈L, j<T−1} (max_{j≤l<T−1} R[l, j] − R[T−1, j]): the drop from a task's best.

    Chaudhry et al. (2018), but rows before a task is learned are left out. A task that ends above its
    best counts negative.
    """
    return mean_or_nan(forgetting_per_task(R)[_learned(learned, len(_square(R)))[:-1]])


def forgetting_per_task(R: ArrayLike) -> Array:
    """Return max_{j≤l<T−1} R[l, j] − R[T−1, j] for each task j < T−1, `[T−1]` (see `forgetting`)."""
    R = _square(R)
    return np.array([R[j:-1, j].max() - R[-1, j] for j in range(len(R) - 1)])


def forgetting_first_last(R: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{j∈L, j<T−1} (R[j, j] − R[T−1, j]) = −`bwt`: the drop from a task's first accuracy."""
    # Never −0.0, which would be written as one.
    return 0.0 - bwt(R, learned)


def intransigence_per_task(R: ArrayLike, joint: ArrayLike) -> Array:
    """Return joint[k] − R[k, k], `[T]`: the cost of the stream for a new task (Chaudhry et al., 2018).

    `joint` is the accuracy of joint training on task k alone, `[T]`; the paper's is on tasks 0 … k at once.
    """
    R = _square(R)
    return _one_a_task("joint", joint, len(R)) - np.diagonal(R)


def intransigence(R: ArrayLike, joint: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{k∈L} of `intransigence_per_task`."""
    costs = intransigence_per_task(R, joint)
    return mean_or_nan(costs[_learned(learned, len(costs))])


def nbt_per_task(R: ArrayLike) -> Array:
    """Return NBT_k = mean_{τ>k} (R[k, k] − R[τ, k]) for each k < T−1, `[T−1]` (LIBERO, Liu et al., 2023)."""
    R = _square(R)
    return np.array([(R[k, k] - R[k + 1 :, k]).mean() for k in range(len(R) - 1)], dtype=np.float64)


def nbt(R: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{k∈L, k<T−1} NBT_k (`nbt_per_task`); the paper includes the undefined last one."""
    per_task = nbt_per_task(R)
    return mean_or_nan(per_task[_learned(learned, len(per_task) + 1)[:-1]])


def auc_per_task(R: ArrayLike, learning_areas: ArrayLike) -> Array:
    """Return AUC_k = (learning_area_k + Σ_{τ>k} R[τ, k]) / (T − k), `[T]` (LIBERO, Liu et al., 2023).

    The area under a task's accuracy from its first step to the end of the stream; every task lasts 1.
    """
    R = _square(R)
    tasks = len(R)
    areas = _one_a_task("learning_areas", learning_areas, tasks)
    return np.array([(areas[k] + R[k + 1 :, k].sum()) / (tasks - k) for k in range(tasks)], dtype=np.float64)


def auc(R: ArrayLike, learning_areas: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{k∈L} AUC_k (`auc_per_task`)."""
    per_task = auc_per_task(R, learning_areas)
    return mean_or_nan(per_task[_learned(learned, len(per_task))])


def learning_area(curve: ArrayLike) -> float:
    """Return (1/E) Σ_e curve[e]: how early a task is learned, as the area under its learning curve.

    The curve `[E]` is the accuracy on a task at E evenly spaced moments (epochs or federated rounds), from
    just before its first step to its end. The plain mean counts both ends fully.

    This is FWT_k of LIBERO (Liu et al., 2023), except that LIBERO holds the curve at its maximum.
    """
    return float(_curve(curve).mean())


def epochs_to_90(curve: ArrayLike) -> float:
    """Return the first moment with 90 % of the curve's last accuracy; 0: before any step.

    Moments are those of `learning_area`. Compare runs of about the same last accuracy. NaN: not measured.
    """
    values = _curve(curve)
    if np.isnan(values).any():
        return float("nan")
    return float(np.argmax(values >= 0.9 * values[-1]))


def summarise(
    R: ArrayLike,
    b: ArrayLike | None = None,
    *,
    single: ArrayLike | None = None,
    joint: ArrayLike | None = None,
    curves: Sequence[ArrayLike] | None = None,
    learned: ArrayLike | None = None,
) -> dict[str, float]:
    """Return all metrics of a stream for the given inputs, by name and in fixed order.

    Metrics with missing inputs are absent; metrics that cannot be measured are NaN. Means of curves are over
    learned tasks.

    `R` is `[T, T]`; `b` and `learned` are `[T]`. `single` and `joint` `[T]` are the accuracies of a model
    trained on one task alone, and of joint training. `curves` are the learning curves, T of shape `[E_k]`.
    """
    R = _square(R)
    own = _learned(learned, len(R))
    summary = {
        "average_accuracy": average_accuracy(R),
        "average_incremental_accuracy": average_incremental_accuracy(R),
        "bwt": bwt(R, learned),
    }
    areas = None if curves is None else _one_a_task("curves", [learning_area(c) for c in curves], len(R))
    if b is not None:
        summary["fwt"] = fwt(R, b, learned)
    if single is not None:
        summary["gain_over_single"] = gain_over_single(R, single, learned)
    if curves is not None and areas is not None:
        summary["learning_area"] = mean_or_nan(areas[own])
        summary["epochs_to_90"] = mean_or_nan(np.array([epochs_to_90(curve) for curve in curves])[own])
    summary["forgetting"] = forgetting(R, learned)
    summary["forgetting_first_last"] = forgetting_first_last(R, learned)
    if joint is not None:
        summary["intransigence"] = intransigence(R, joint, learned)
    summary["nbt"] = nbt(R, learned)
    if areas is not None:
        summary["auc"] = auc(R, areas, learned)
    return summary


def _square(R: ArrayLike) -> Array:
    matrix = np.asarray(R, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"R must have shape [T, T] with T ≥ 1, got {list(matrix.shape)}")
    return matrix


def _one_a_task(name: str, values: ArrayLike, tasks: int) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (tasks,):
        raise ValueError(f"{name} must have shape [{tasks}], one value a task, got {list(array.shape)}")
    return array


def _learned(learned: ArrayLike | None, tasks: int) -> NDArray[np.bool_]:
    """Return which tasks were learned, `[T]`."""
    if learned is None:
        return np.ones(tasks, dtype=bool)
    array = np.asarray(learned)
    if array.shape != (tasks,) or array.dtype != bool:
        raise ValueError(f"learned must be [{tasks}] of bool, got {list(array.shape)} of {array.dtype}")
    return array


def mean_or_nan(values: Array) -> float:
    """Return the mean; NaN, without numpy's warning, of nothing."""
    return float(values.mean()) if values.size else float("nan")


def _curve(curve: ArrayLike) -> Array:
    values = np.asarray(curve, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"curve must have shape [E] with E ≥ 1, got {list(values.shape)}")
    return values
