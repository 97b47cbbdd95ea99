"""A user's arrays from a `.npz` file."""

import zipfile
import zlib
from typing import Any

import numpy as np

from fedkd.data.dataset import Dataset, dataset_from_arrays
from fedkd.data.memory_budget import check_unpacked
from fedkd.data.partitions.stratified import own_test_split
from fedkd.data.request import SourceRequest
from fedkd.errors import UserError, refuse_if

KEY = "data.args.path"
SPLIT = ("train_x", "train_y", "test_x", "test_y")


def load(request: SourceRequest) -> Dataset:
    """Return the arrays `train_x, train_y, test_x, test_y`, or `x, y` with a test split drawn from them.

    `class_names` [C] is optional, and so are `owners` of the samples of `train_x`, or of `x`, for the
    partition scheme `natural`. Arguments: `path`; the `kind` of the samples, else it is inferred; and for
    `x, y` the share of the test split (`test_share`) and its seed (`split_seed`). This seed is independent of
    the scenario's, so that runs share one test set.
    Pickled objects are refused.
    """
    args = request.arguments(path=str, kind=str, test_share=0.2, split_seed=0)
    path = request.path(args["path"])
    try:
        check_unpacked(path, KEY)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except MemoryError as error:  # a header declares more than its member holds
        raise UserError(f"{path} declares arrays too large for memory: {error}", key=KEY) from error
    except (OSError, ValueError, EOFError, OverflowError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"cannot read {path} as .npz without pickled objects: {error}", key=KEY) from error
    names = arrays.get("class_names")
    details: dict[str, Any] = {
        "class_names": None if names is None else [str(name) for name in names.ravel()],
        "owners": arrays.get("owners"),
        "kind": args["kind"],
        "integers": request.integers,
        "regression": request.regression,
        "key": KEY,
    }
    if all(name in arrays for name in SPLIT):
        return dataset_from_arrays(request.name, *(arrays[name] for name in SPLIT), **details)
    told = f"{path} must hold {', '.join(SPLIT)} or x, y; it holds {', '.join(arrays) or 'nothing'}"
    refuse_if("x" not in arrays or "y" not in arrays, told, KEY)
    x, y = arrays["x"], arrays["y"]
    # Arrays are checked before the split, so that messages name the user's arrays.
    whole = dataset_from_arrays(request.name, x, y, x, y, **details)
    test = own_test_split(whole.train_y, args["test_share"], args["split_seed"])
    x, y, owners = whole.train_x, whole.train_y, whole.owners
    own = None if owners is None else owners[~test]
    return Dataset(request.name, whole.class_names, x[~test], y[~test], x[test], y[test], own, whole.kind)
