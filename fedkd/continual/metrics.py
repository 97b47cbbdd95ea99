"""Continual metrics: one name, one definition.

Libraries use the same names for different things, so every function here carries its formula.

``R[i, j]`` is the accuracy on task j after learning task i, shape `[T, T]`, 0-based; ``b[j]`` is the
accuracy of the untrained model on task j, shape `[T]`. Tasks are numbered in the order in which they are
learned. The unit is the caller's (a share or per cent): every metric but `epochs_to_90` scales with the
accuracies and has their unit.

Three rules hold throughout:

* ``L`` is the set of tasks that were learned, `learned`; without it, all of them. A client that was absent
  from a whole task has not learned it: ``R[j, j]`` is no accuracy after learning then, and what it gains on
  the task later is no transfer. So whatever compares with the moment of learning is a mean over ``j ∈ L``,
  and `fwt` one over the tasks before which something was learned. Accuracies are means over all tasks: a task
  that was missed costs.
* NaN is an entry that was not measured. It makes every metric NaN whose formula needs it, and no other: an
  unmeasured entry is never quietly left out of a mean. Above the diagonal, for instance, only `fwt` looks.
* A mean over nothing is NaN. With a single task there is no earlier and no later one, so `bwt`, `fwt`,
  `forgetting`, `forgetting_first_last` and `nbt` have nothing to measure and are NaN; the others are defined.

Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedkd.continual.curves import Array, epochs_to_90, learning_area


def average_accuracy(R: ArrayLike) -> float:
    """Return mean_j R[T−1, j]: the accuracy over all tasks once the last one has been learned.

    Tasks that were not learned are in it.

    Args:
        R: Accuracy on task j after learning task i, `[T, T]`.

    Raises:
        ValueError: `R` is not a square matrix of at least one task.
    """
    return _mean(_square(R)[-1])


def average_incremental_accuracy(R: ArrayLike) -> float:
    """Return mean_i mean_{j≤i} R[i, j]: the accuracy over the tasks seen so far, averaged over the stream.

    The habit of class-incremental learning (Rebuffi et al., 2017, iCaRL). Every i has the same weight,
    however many tasks it averages.

    Args:
        R: Accuracy on task j after learning task i, `[T, T]`.

    Raises:
        ValueError: `R` is not a square matrix of at least one task.
    """
    R = _square(R)
    return _mean(np.array([R[i, : i + 1].mean() for i in range(len(R))]))


def bwt(R: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{j∈L, j<T−1} (R[T−1, j] − R[j, j]): backward transfer (Lopez-Paz & Ranzato, 2017).

    What learning later tasks added to the earlier ones; negative: they were forgotten. Elsewhere the name
    also stands for an average over all pairs i > j, and for −`forgetting`.

    Args:
        R: Accuracy on task j after learning task i, `[T, T]`.
        learned: Which tasks were learned, `[T]` of bool; None: all.

    Returns:
        NaN for T = 1, or where none but the last task was learned.

    Raises:
        ValueError: `R` is not a square matrix of at least one task, or `learned` is not one value a task.
    """
    R = _square(R)
    return _mean((R[-1, :-1] - np.diagonal(R)[:-1])[_learned(learned, len(R))[:-1]])


def fwt(R: ArrayLike, b: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{j>min L} (R[j−1, j] − b[j]): forward transfer (Lopez-Paz & Ranzato, 2017).

    What the earlier tasks add to a task before it is learned; the tasks after the first that was learned
    count. CUBER's FWT is `gain_over_single`, LIBERO's is `learning_area`.

    Args:
        R: Accuracy on task j after learning task i, `[T, T]`.
        b: Accuracy of the untrained model on task j, `[T]`.
        learned: Which tasks were learned, `[T]` of bool; None: all.

    Returns:
        NaN for T = 1, or where no task follows one that was learned.

    Raises:
        ValueError: `R` is not a square matrix of at least one task, or `b` or `learned` is not one value a
            task.
    """
    R = _square(R)
    follows = np.logical_or.accumulate(_learned(learned, len(R)))[:-1]
    return _mean((np.diagonal(R, offset=1) - _one_a_task("b", b, len(R))[1:])[follows])


def gain_over_single(R: ArrayLike, single: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{j∈L} (R[j, j] − single[j]): what the stream adds to a task when it is learned.

    CUBER (Lin et al., 2022) calls it FWT. The first task is in the mean, although nothing came before it.

    Args:
        R: Accuracy on task j after learning task i, `[T, T]`.
        single: Accuracy on task j of a model trained on task j alone, `[T]`.
        learned: Which tasks were learned, `[T]` of bool; None: all.

    Raises:
        ValueError: `R` is not a square matrix of at least one task, or `single` or `learned` is not one
            value a task.
    """
    R = _square(R)
    return _mean((np.diagonal(R) - _one_a_task("single", single, len(R)))[_learned(learned, len(R))])


def forgetting(R: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{j∈L, j<T−1} (max_{j≤l<T−1} R[l, j] − R[T−1, j]): the drop from a task's best.

    Chaudhry et al. (2018). The last row is not in the maximum, so forgetting is negative where learning the
    last task raised a task above all it had reached before. Rows before a task is learned are not in it
    either; the paper has them in.

    Args:
        R: Accuracy on task j after learning task i, `[T, T]`.
        learned: Which tasks were learned, `[T]` of bool; None: all.

    Returns:
        NaN for T = 1, or where none but the last task was learned.

    Raises:
        ValueError: `R` is not a square matrix of at least one task, or `learned` is not one value a task.
    """
    return _mean(forgetting_per_task(R)[_earlier(learned, len(_square(R)))])


def forgetting_per_task(R: ArrayLike) -> Array:
    """Return max_{j≤l<T−1} R[l, j] − R[T−1, j] for each task j < T−1, `[T−1]` (see `forgetting`).

    Args:
        R: Accuracy on task j after learning task i, `[T, T]`.

    Raises:
        ValueError: `R` is not a square matrix of at least one task.
    """
    R = _square(R)
    return np.array([R[j:-1, j].max() - R[-1, j] for j in range(len(R) - 1)])


def forgetting_first_last(R: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{j∈L, j<T−1} (R[j, j] − R[T−1, j]) = −`bwt`: the drop from a task's first accuracy.

    Args:
        R: Accuracy on task j after learning task i, `[T, T]`.
        learned: Which tasks were learned, `[T]` of bool; None: all.

    Returns:
        NaN for T = 1, or where none but the last task was learned.

    Raises:
        ValueError: `R` is not a square matrix of at least one task, or `learned` is not one value a task.
    """
    # Never −0.0, which would be written as one.
    return 0.0 - bwt(R, learned)


def intransigence_per_task(R: ArrayLike, joint: ArrayLike) -> Array:
    """Return joint[k] − R[k, k]: what learning in a stream costs a new task (Chaudhry et al., 2018).

    Args:
        R: Accuracy on task j after learning task i, `[T, T]`.
        joint: Accuracy on task k of joint training, `[T]`. Chaudhry et al. train that model on tasks 0 … k at
            once.

    Returns:
        One value a task k, `[T]`.

    Raises:
        ValueError: `R` is not a square matrix of at least one task, or `joint` is not one value a task.
    """
    R = _square(R)
    return _one_a_task("joint", joint, len(R)) - np.diagonal(R)


def intransigence(R: ArrayLike, joint: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{k∈L} (joint[k] − R[k, k]); arguments and errors as in `intransigence_per_task`."""
    costs = intransigence_per_task(R, joint)
    return _mean(costs[_learned(learned, len(costs))])


def nbt_per_task(R: ArrayLike) -> Array:
    """Return NBT_k = mean_{τ>k} (R[k, k] − R[τ, k]): LIBERO's negative backward transfer (Liu et al., 2023).

    Args:
        R: Accuracy on task j after learning task i, `[T, T]`.

    Returns:
        One value for each k < T−1, `[T−1]`: no task comes after the last one.

    Raises:
        ValueError: `R` is not a square matrix of at least one task.
    """
    R = _square(R)
    return np.array([(R[k, k] - R[k + 1 :, k]).mean() for k in range(len(R) - 1)], dtype=np.float64)


def nbt(R: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{k∈L, k<T−1} NBT_k, see `nbt_per_task`.

    The paper writes the mean over all T tasks, where the last one's NBT is a mean over nothing; here the mean
    is over the tasks before the last, those that have one.

    Args:
        R: Accuracy on task j after learning task i, `[T, T]`.
        learned: Which tasks were learned, `[T]` of bool; None: all.

    Returns:
        NaN for T = 1, or where none but the last task was learned.

    Raises:
        ValueError: `R` is not a square matrix of at least one task, or `learned` is not one value a task.
    """
    per_task = nbt_per_task(R)
    return _mean(per_task[_earlier(learned, len(per_task) + 1)])


def auc_per_task(R: ArrayLike, learning_areas: ArrayLike) -> Array:
    """Return AUC_k = (learning_area_k + Σ_{τ>k} R[τ, k]) / (T − k), k 0-based (LIBERO, Liu et al., 2023).

    The area under a task's accuracy from when it is first learned to the end of the stream, every task's
    duration counting as 1.

    Args:
        R: Accuracy on task j after learning task i, `[T, T]`.
        learning_areas: `learning_area` of each task, `[T]`; whether of epochs or of federated rounds is the
            caller's.

    Returns:
        One value a task k, `[T]`.

    Raises:
        ValueError: `R` is not a square matrix of at least one task, or `learning_areas` is not one value a
            task.
    """
    R = _square(R)
    tasks = len(R)
    areas = _one_a_task("learning_areas", learning_areas, tasks)
    return np.array([(areas[k] + R[k + 1 :, k].sum()) / (tasks - k) for k in range(tasks)], dtype=np.float64)


def auc(R: ArrayLike, learning_areas: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Return mean_{k∈L} AUC_k; arguments and errors as in `auc_per_task`.

    For T = 1 it is the task's own area.
    """
    per_task = auc_per_task(R, learning_areas)
    return _mean(per_task[_learned(learned, len(per_task))])


def summarise(
    R: ArrayLike,
    b: ArrayLike | None = None,
    *,
    single: ArrayLike | None = None,
    joint: ArrayLike | None = None,
    curves: Sequence[ArrayLike] | None = None,
    learned: ArrayLike | None = None,
) -> dict[str, float]:
    """Return every metric of a stream that can be computed from what is given, by name.

    The order is always `average_accuracy`, `average_incremental_accuracy`, `bwt`, `fwt` (needs `b`),
    `gain_over_single` (`single`), `learning_area` and `epochs_to_90` (`curves`; means over tasks),
    `forgetting`, `forgetting_first_last`, `intransigence` (`joint`), `nbt`, `auc` (`curves`). A metric whose
    input is missing is absent; one that is there but has nothing to measure, or meets an unmeasured entry, is
    NaN.

    Args:
        R: Accuracy on task j after learning task i, `[T, T]`.
        b: Accuracy of the untrained model on task j, `[T]`.
        single: Accuracy on task j of a model trained on task j alone, `[T]`.
        joint: Accuracy on task k of joint training, `[T]`.
        curves: Learning curve of each task, T of shape `[E_k]`, see `learning_area`. Their means are over
            the tasks that were learned.
        learned: Which tasks were learned, `[T]` of bool; None: all.

    Raises:
        ValueError: A shape is wrong.
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
        summary["learning_area"] = _mean(areas[own])
        summary["epochs_to_90"] = _mean(np.array([epochs_to_90(curve) for curve in curves])[own])
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


def _earlier(learned: ArrayLike | None, tasks: int) -> NDArray[np.int_]:
    """Return the tasks before the last that were learned, ascending."""
    return np.flatnonzero(_learned(learned, tasks)[:-1])


def _mean(values: Array) -> float:
    """Return the mean; NaN, without numpy's warning, where there is nothing to average."""
    return float(values.mean()) if values.size else float("nan")
