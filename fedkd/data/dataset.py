"""A labelled data set in memory, with a train and a test split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd.errors import UserError, described, refuse_if

LARGEST = 1e15  # largest value in a sample: sums of squares of thousands of larger ones overflow float32


@dataclass(frozen=True)
class Dataset:
    """Samples in the form of their source, before normalisation.

    `train_x` is [n, *shape], `test_x` [m, *shape]: images (channels, height, width) or vectors (features,),
    as uint8 in 0..255, float32 (images: in 0..1 by convention), or int64 (ids to be looked up). Labels are
    int64 in 0..C-1; `class_names` has the C names in their order. `owners` [n] are numbers (int64) or names;
    None: unknown. `feature_names` are those of the columns of vectors; empty: unknown.
    """

    name: str
    class_names: tuple[str, ...]
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    owners: np.ndarray | None = None
    feature_names: tuple[str, ...] = ()

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
    integers: bool = False,
    key: str = "data.args",
) -> Dataset:
    """Check a user's arrays and return a `Dataset`; invalid arrays raise a `UserError`.

    Images may be [n, H, W], [n, C, H, W] or, with 1 or 3 channels, [n, H, W, C]; labels are integers, [n] or
    [n, 1]. Types other than uint8 become float32; with `integers`, other integers become int64. Without
    `class_names` the classes are the labels 0..C-1, and each must occur.
    """
    x, test = _samples(train_x, "train_x", integers, key), _samples(test_x, "test_x", integers, key)
    y, test_labels = _labels(train_y, "train_y", len(x), key), _labels(test_y, "test_y", len(test), key)
    told = f"train_x and test_x must hold samples of one shape, got {x.shape[1:]} and {test.shape[1:]}"
    refuse_if(x.shape[1:] != test.shape[1:], told, key)
    kinds = "uint8, both integers, or both other numbers" if integers else "uint8, or both other numbers"
    refuse_if(x.dtype != test.dtype, f"train_x and test_x must both be {kinds}", key)
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
    if owners is not None:
        owners = _owners(owners, len(y), key)
    return Dataset(name, tuple(str(label) for label in class_names), x, y, test, test_labels, owners)


def _as_array(values: Any, what: str, key: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except Exception as error:  # lists of unequal lengths, tensors on other devices
        raise UserError(f"{what} must be an array: {described(error)}", key=key) from error


def _samples(values: Any, what: str, integers: bool, key: str) -> np.ndarray:
    x = _as_array(values, what, key)
    refuse_if(x.dtype.kind not in "buif", f"{what} must hold numbers, got dtype {x.dtype}", key)
    told = f"{what} must be [n, features], [n, H, W] or [n, C, H, W] and not empty, got shape {x.shape}"
    refuse_if(x.ndim not in (2, 3, 4) or x.size == 0, told, key)
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = np.ascontiguousarray(np.moveaxis(x, 3, 1))
    if integers and x.dtype.kind in "iu" and x.dtype != np.uint8:
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
