"""Data sets of Hugging Face: a folder written by `save_to_disk`, or one of the hub by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.data.dataset import Dataset, dataset_from_arrays
from fedkd.data.kinds import IMAGE
from fedkd.data.memory_budget import check_memory_budget
from fedkd.data.partitions.stratified import own_test_split
from fedkd.data.request import SourceRequest
from fedkd.data.sources.table import KEY, from_table
from fedkd.errors import UserError, described, did_you_mean, refuse_if
from fedkd.plugins import require_package
from fedkd.storage import expand_path

SPLIT = "(split)"
"""Column of the split of each row, beside the data set's own."""
TEXTS = ("text", "sentence")
"""Names of a column of text that needs no mention in `columns`."""


def load(request: SourceRequest) -> Dataset:
    """Return images with classes, or what `table` makes of the columns.

    `path` is a folder of `save_to_disk`, or the name of a data set of the hub, with a `config` if it has
    several. No network is used for a folder, or for a name in the cache of `datasets`. The splits `train` and
    `test` are the data set's, or `splits = { train = …, test = … }` names them. Without a test split a share
    of each class is one (`test_share`, `split_seed`).

    `columns`, `missing` and `tokenizer` are those of `table`. The label is by default the only column of
    class labels, or `label`; a column of images holds the samples; without `columns.features`, a column
    `text` or `sentence` does.
    """
    args = request.arguments(
        **{"path": str, "config": str, "splits": dict, "columns": dict, "missing": str, "tokenizer": dict},
        test_share=0.2,
        split_seed=0,
    )
    parts = _splits(_opened(request, args), args["splits"] or {})
    features = next(iter(parts.values())).features
    columns = _columns(dict(args["columns"] or {}), features, split="test" in parts)
    images = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    if images:
        return _images(request, parts, images[0], columns, args)
    import pyarrow as pa

    tables = []
    for split, part in parts.items():
        table = part.with_format("arrow")[:].select(part.column_names)
        for name, kind in features.items():
            if hasattr(kind, "int2str"):
                place = table.column_names.index(name)
                table = table.set_column(place, name, _class_names(table[name], kind.names))
        tables.append(table.append_column(SPLIT, pa.array([split] * len(table))))
    table = pa.concat_tables(tables)
    if "test" not in parts:
        table = table.drop_columns([SPLIT])
    return from_table(table, Path(args["path"]), request, args | {"columns": columns})


def _opened(request: SourceRequest, args: Mapping[str, Any]) -> Any:
    datasets = require_package("datasets", "the data set 'hf'", "hf")
    refuse_if(not args["path"], "'hf' needs a folder, or the name of a data set", "data.args.path")
    given = expand_path(args["path"], key="data.args.path")
    folders = [given] if given.is_absolute() else [b / given for b in (request.root, *request.search, Path())]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    try:
        if folder is not None:
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(args["path"], args["config"])
    except Exception as error:  # the package raises errors of many libraries, those of networks included
        told = f"cannot open '{args['path']}' as a folder or as a data set of the hub: {described(error)}"
        raise UserError(told, key="data.args.path") from error


def _splits(opened: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data sets of train and, where there is one, test."""
    if not isinstance(opened, Mapping):
        refuse_if(bool(named), "must be absent: the folder holds one data set", "data.args.splits")
        return {"train": opened}
    for key in named:
        told = f"unknown key; {did_you_mean(key, ('train', 'test'))}"
        refuse_if(key not in ("train", "test"), told, f"data.args.splits.{key}")
    wanted = {"train": "train", **({"test": "test"} if "test" in opened else {}), **named}
    for key, name in wanted.items():
        told = f"no split {name!r}; {did_you_mean(str(name), opened)}"
        refuse_if(name not in opened, told, f"data.args.splits.{key}")
    parts = {key: opened[name] for key, name in wanted.items()}
    empty = [key for key, part in parts.items() if len(part) == 0]
    refuse_if(empty, f"the split {empty[:1]} has no rows", "data.args.splits")
    if "test" in parts:
        same = parts["train"].features == parts["test"].features
        refuse_if(not same, "train and test must have the same features", "data.args.splits")
    return parts


def _columns(columns: dict[str, Any], features: Mapping[str, Any], *, split: bool) -> dict[str, Any]:
    """Return the roles of the columns, with what the types of the features say."""
    if "label" not in columns:
        labels = [name for name, kind in features.items() if hasattr(kind, "int2str")]
        columns |= (
            {"label": labels[0]} if len(labels) == 1 else {"label": "label"} if "label" in features else {}
        )
    if not {"features", "text", "categorical"} & columns.keys():
        columns |= next(({"text": name} for name in TEXTS if name in features), {})
    if split:
        refuse_if("split" in columns, "must be absent: the data set has a test split", f"{KEY}.split")
        columns["split"] = SPLIT
    return columns


def _class_names(codes: Any, names: list[str]) -> Any:
    import pyarrow as pa

    return pa.chunked_array([pa.array([None if c is None or c < 0 else names[c] for c in codes.to_pylist()])])


def _images(
    request: SourceRequest,
    parts: dict[str, Any],
    image: str,
    columns: dict[str, Any],
    args: Mapping[str, Any],
) -> Dataset:
    """Return images uint8 [n, C, H, W] of one size."""
    told = f"must name the column with the classes, besides the images '{image}'"
    refuse_if("label" not in columns, told, f"{KEY}.label")
    label, client = columns["label"], columns.get("client")
    features = parts["train"].features
    for key, name in (("label", label), ("client", client)):
        there = name is None or name in features
        refuse_if(not there, f"no column '{name}'; {did_you_mean(str(name), features)}", f"{KEY}.{key}")
    values = {split: part[label] for split, part in parts.items()}
    if hasattr(features[label], "int2str"):
        names = list(features[label].names)
        codes = {split: np.array(those) for split, those in values.items()}
    else:
        names = sorted({str(value) for those in values.values() for value in those})
        codes = {s: np.array([names.index(str(value)) for value in those]) for s, those in values.items()}
    x = {split: _pixels(part, image) for split, part in parts.items()}
    owners = None if client is None else np.array([str(value) for value in parts["train"][client]])
    train: Any = slice(None)
    if "test" not in parts:
        test = own_test_split(codes["train"], args["test_share"], args["split_seed"])
        x["test"], codes["test"], train = x["train"][test], codes["train"][test], ~test
    arrays = x["train"][train], codes["train"][train], x["test"], codes["test"]
    owners = None if owners is None else owners[train]
    return dataset_from_arrays(request.name, *arrays, class_names=names, owners=owners, kind=IMAGE)


def _pixels(part: Any, column: str) -> np.ndarray:
    """Return images as uint8 [n, H, W] or [n, H, W, 3]."""
    first = np.asarray(part[0][column])
    check_memory_budget(len(part) * first.size, f"{len(part):,} images take", "data.args.path")
    x = np.empty((len(part), *first.shape), np.uint8)
    for row, decoded in enumerate(part[column]):
        pixels = np.asarray(decoded)
        told = f"images must be of one size and mode, got {first.shape} and in row {row + 1} {pixels.shape}"
        refuse_if(pixels.shape != first.shape or pixels.dtype != np.uint8, told, "data.args.path")
        x[row] = pixels
    return x
