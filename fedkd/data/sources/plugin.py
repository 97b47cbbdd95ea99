"""A user's own function as a data set: `dataset = "pkg.mod:function"`."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fedkd.data.dataset import Dataset, dataset_from_arrays
from fedkd.data.kinds import inferred_kind
from fedkd.data.request import SourceRequest
from fedkd.data.sources.torch_dataset import arrays_of, both_splits, torch_parts
from fedkd.errors import UserError, did_you_mean, refuse_if
from fedkd.plugins import plugin_call

ARRAYS = ("train_x", "train_y", "test_x", "test_y")
OTHERS = ("class_names", "owners", "kind")


def call(function: Callable[..., Any], request: SourceRequest) -> Dataset:
    """Call `function(**data.args)` and check its result.

    It may return a `Dataset`, a tuple (train_x, train_y, test_x, test_y), or a dict of these four and, if
    wanted, `class_names`, `owners` of the train samples, and `kind`, the name of their kind. `data.args.kind`
    names the kind as well, unless the function takes an argument of that name. It may also be a map-style
    `torch.utils.data.Dataset`, or return one, or one for train and one for test (see `torch_dataset`).
    """
    args = dict(request.args)
    kind = None if takes(function, "kind") else args.pop("kind", None)
    request.progress(f"calling {request.name}")
    with plugin_call(request.name, "data.dataset"):
        result = both_splits(function, args)
        parts = torch_parts(result)
        if parts is not None:
            arrays, names = arrays_of(parts, request.name)
            result = arrays | {"class_names": names}
    unpacked, others = _unpack(result, request.name)
    others |= {} if kind is None else {"kind": kind}
    others |= {"integers": request.integers, "regression": request.regression}
    return dataset_from_arrays(request.name, *unpacked, **others, key="data.dataset")


def _unpack(result: Any, name: str) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(result, Dataset):
        inferred = result.kind == inferred_kind(result.shape, result.train_x.dtype)
        fields = {field: getattr(result, field) for field in (*ARRAYS, *OTHERS)}
        result = fields | {"kind": None if inferred else result.kind.name}
    if isinstance(result, Mapping):
        for field in result:
            if field not in (*ARRAYS, *OTHERS):
                told = f"{name} returned an unknown entry '{field}'; {did_you_mean(str(field), ARRAYS)}"
                raise UserError(told, key="data.dataset")
        missing = [field for field in ARRAYS if field not in result]
        refuse_if(missing, f"{name} returned no {', '.join(missing)}", "data.dataset")
        return [result[field] for field in ARRAYS], {field: result.get(field) for field in OTHERS}
    if isinstance(result, tuple | list) and len(result) == len(ARRAYS):
        return list(result), {}
    told = f"{name} must return a Dataset, a tuple ({', '.join(ARRAYS)}) or a dict of these,"
    raise UserError(f"{told} got {type(result).__name__}", key="data.dataset")


def takes(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function takes an argument by name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # compiled callables have no signature
        return True
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
