"""Arrays from map-style data sets of PyTorch, read once."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedkd.data.memory_budget import check_memory_budget
from fedkd.data.partitions.stratified import own_test_split
from fedkd.errors import UserError, described, refuse_if

KEY = "data.dataset"
TEST_SHARE = 0.2


def torch_parts(result: Any) -> tuple[Any, ...] | None:
    """Return the data sets of train and, if there are two, test; None: `result` is something else."""
    from torch.utils.data import Dataset, IterableDataset

    if isinstance(result, Mapping) and result.keys() == {"train", "test"}:
        result = result["train"], result["test"]
    parts = result if isinstance(result, tuple | list) else (result,)
    if not parts or not all(isinstance(part, Dataset) for part in parts):
        return None
    told = "data sets of torch must be map-style, with a length: one, or one to train and one to test"
    sized = all(hasattr(part, "__len__") and not isinstance(part, IterableDataset) for part in parts)
    refuse_if(len(parts) > 2 or not sized, told, KEY)
    return tuple(parts)


def both_splits(function: Callable[..., Any], args: Mapping[str, Any]) -> Any:
    """Return the result, or the two of a class with an argument `train`, as torchvision's have."""
    from inspect import isclass, signature

    from torch.utils.data import Dataset

    splits = isclass(function) and issubclass(function, Dataset) and "train" in signature(function).parameters
    if not splits or "train" in args:
        return function(**args)
    return function(**args, train=True), function(**args, train=False)


def arrays_of(parts: tuple[Any, ...], name: str) -> tuple[dict[str, Any], Any]:
    """Return train and test arrays by name, and the class names if the data set has `classes`.

    An item is a pair of a sample and a label: arrays, tensors, images of Pillow, numbers. A fifth of each
    class of a single data set is the test split.
    """
    read = [_read(part, name) for part in parts]
    if len(read) == 1:
        x, y = read[0]
        labels = y if y.dtype.kind == "f" else np.unique(y, return_inverse=True)[1].reshape(len(y), -1)[:, 0]
        test = own_test_split(labels, TEST_SHARE, 0)
        read = [(x[~test], y[~test]), (x[test], y[test])]
    (train_x, train_y), (test_x, test_y) = read
    classes = getattr(parts[0], "classes", None)
    named = isinstance(classes, list | tuple) and all(isinstance(one, str) for one in classes)
    arrays = {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}
    return arrays, list(classes) if named and classes else None


def _read(part: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    count = len(part)
    refuse_if(count == 0, f"{name} is empty", KEY)
    x, y = None, list[np.ndarray]()
    for row in range(count):
        item = part[row]
        pair = isinstance(item, tuple | list) and len(item) == 2
        told = f"{name}: item {row} must be a pair of a sample and a label, got {type(item).__name__}"
        refuse_if(not pair, told, KEY)
        try:
            sample, label = np.asarray(item[0]), np.asarray(item[1])
        except Exception as error:
            raise UserError(f"{name}: item {row} must hold arrays: {described(error)}", key=KEY) from error
        for what, values in (("sample", sample), ("label", label)):
            told = f"{name}: the {what} of item {row} must hold numbers, got {values.dtype}"
            refuse_if(values.dtype.kind not in "buif", told, KEY)
        if x is None:
            check_memory_budget(count * sample.nbytes, f"{count:,} items of {name} take", KEY)
            x = np.empty((count, *sample.shape), sample.dtype)
        told = f"{name}: samples must have one shape, got {x.shape[1:]} and in item {row} {sample.shape}"
        refuse_if(sample.shape != x.shape[1:] or label.shape != (y[0].shape if y else label.shape), told, KEY)
        x[row] = sample
        y.append(label)
    assert x is not None
    return x, np.stack(y)
