"""A labelled data set in memory, with a train and a test split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd.data.kinds import IMAGE, INFERRED, SampleKind, inferred_kind, kind_named, with_vocabulary
from fedkd.data.targets import check_targets
from fedkd.errors import UserError, described, refuse_if

LARGEST = 1e15  # largest value in a sample: sums of squares of thousands of larger ones overflow float32


@dataclass(frozen=True)
class Dataset:
    """Samples in the form of their source, before normalisation.

    `train_x` is [n, *shape], `test_x` [m, *shape], as uint8 in 0..255, float32 (images: in 0..1 by
    convention), or int64 (ids to be looked up). Labels are int64 in 0..C-1; `class_names` has the C names in
    their order. Targets of regression are float64 [n, O], and `class_names` has their O names. `owners` [n]
    are numbers (int64) or names; None: unknown. `kind` is inferred unless given. `feature_names` are those of
    the columns of vectors; empty: unknown.
    """

    name: str
    class_names: tuple[str, ...]
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    owners: np.ndarray | None = None
    kind: SampleKind = INFERRED
    feature_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kind = inferred_kind(self.shape, self.train_x.dtype) if self.kind == INFERRED else self.kind
        object.__setattr__(self, "kind", with_vocabulary(kind, self.train_x, self.test_x))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train_x.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)


def dataset_from_arrays(
    name: str,
    train_x: Any,
    train_y: Any,
    test_x: Any,
    test_y: Any,
    *,
    class_names: Sequence[str] | None = None,
    owners: Any = None,
    kind: SampleKind | str | None = None,
    integers: bool = False,
    regression: bool = False,
    key: str = "data.args",
) -> Dataset:
    """Check a user's arrays and return a `Dataset`; invalid arrays raise a `UserError`.

    Images may be [n, H, W], [n, C, H, W] or, with 1 or 3 channels, [n, H, W, C]; labels are integers, [n] or
    [n, 1]. Types other than uint8 become float32; with `integers`, other integers become int64. Without
    `class_names` the classes are the labels 0..C-1, and each must occur. Without a `kind` it is inferred.
    With `regression`, labels are numeric targets [n] or [n, O].
    """
    given = kind_named(kind) if isinstance(kind, str) else kind
    x = _samples(train_x, "train_x", given, integers, key)
    test = _samples(test_x, "test_x", given, integers, key)
    read = check_targets if regression else _labels
    y, test_labels = read(train_y, "train_y", len(x), key), read(test_y, "test_y", len(test), key)
    told = f"train_x and test_x must hold samples of one shape, got {x.shape[1:]} and {test.shape[1:]}"
    refuse_if(x.shape[1:] != test.shape[1:], told, key)
    kinds = "uint8, both integers, or both other numbers" if integers else "uint8, or both other numbers"
    refuse_if(x.dtype != test.dtype, f"train_x and test_x must both be {kinds}", key)
    owners = None if owners is None else _owners(owners, len(y), key)
    if regression:
        names = class_names or (["target"] if y.shape[1] == 1 else [f"target {n}" for n in range(y.shape[1])])
        told = (
            f"there must be a name for each of {y.shape[1]} targets in train_y and test_y, got {len(names)}"
        )
        refuse_if(not len(names) == y.shape[1] == test_labels.shape[1], told, key)
        return Dataset(name, tuple(map(str, names)), x, y, test, test_labels, owners, given or INFERRED)
    largest = int(max(y.max(), test_labels.max()))
    if class_names is None:
        told = "labels must be 0..C-1, each with a train sample;"
        # Before an array is made for a billion classes.
        few = f"{told} the largest is {largest}, and there are {len(y)} train samples"
        refuse_if(largest >= len(y), few, key)
        present = np.bincount(y, minlength=largest + 1)
        absent = f"none has label {int(np.argmin(present))} while the largest label is {largest}"
        refuse_if(not present.all(), f"{told} {absent}", key)
        class_names = [str(label) for label in range(largest + 1)]
    elif largest >= len(class_names):
        raise UserError(f"label {largest} has no name: there are {len(class_names)} class names", key=key)
    return Dataset(
        name, tuple(str(label) for label in class_names), x, y, test, test_labels, owners, given or INFERRED
    )


def _as_array(values: Any, what: str, key: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except Exception as error:  # lists of unequal lengths, tensors on other devices
        raise UserError(f"{what} must be an array: {described(error)}", key=key) from error


def _samples(values: Any, what: str, kind: SampleKind | None, integers: bool, key: str) -> np.ndarray:
    x = _as_array(values, what, key)
    refuse_if(x.dtype.kind not in "buif", f"{what} must hold numbers, got dtype {x.dtype}", key)
    told = f"{what} must be [n, features], [n, H, W] or [n, C, H, W] and not empty, got shape {x.shape}"
    refuse_if(x.ndim not in (2, 3, 4) or x.size == 0, told, key)
    if kind in (None, IMAGE):
        if x.ndim == 3:
            x = x[:, None]
        elif x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
            x = np.ascontiguousarray(np.moveaxis(x, 3, 1))
    if kind is not None:
        told = f"{what} must hold {kind.form}, got samples {list(x.shape[1:])}"
        refuse_if(not kind.fits(x.shape[1:]), told, key)
    if kind is not None and kind.integers:
        told = f"{what} must hold {kind.plural}, integers ≥ 0, got"
        refuse_if(x.dtype.kind not in "iu", f"{told} {x.dtype}", key)
        refuse_if(x.min() < 0, f"{told} {x.min()}", key)
        return x.astype(np.int64, copy=False)
    if kind is None and integers and x.dtype.kind in "iu" and x.dtype != np.uint8:
        return x.astype(np.int64, copy=False)
    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):
            x = x.astype(np.float32, copy=False)
        told = f"{what} must be finite in float32, got NaN or infinity"
        refuse_if(not np.isfinite(x).all(), told, key)
        if np.abs(x).max() > LARGEST:
            told = f"{what} must be within ±{LARGEST:g}, got {x.flat[np.abs(x).argmax()]:g}"
            raise UserError(told, key=key)
    return x


def _labels(values: Any, what: str, samples: int, key: str) -> np.ndarray:
    y = _as_array(values, what, key)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind not in "ui" or y.ndim != 1:
        raise UserError(f"{what} must be integer labels [n], got {y.dtype} of shape {y.shape}", key=key)
    refuse_if(len(y) != samples, f"{what} must have a label for each of {samples} samples, got {len(y)}", key)
    y = y.astype(np.int64)
    refuse_if(y.min() < 0, f"{what} must be ≥ 0, got {int(y.min())}", key)
    return y


def _owners(values: Any, samples: int, key: str) -> np.ndarray:
    owners = _as_array(values, "owners", key)
    told = f"owners must be an integer or a name for each of {samples} train samples, got {owners.dtype} of"
    fits = owners.dtype.kind in "uiU" and owners.shape == (samples,)
    refuse_if(not fits, f"{told} shape {owners.shape}", key)
    return owners if owners.dtype.kind == "U" else owners.astype(np.int64)
