"""A table from a CSV, TSV, JSON lines, Parquet or Arrow file: numbers and categories, clients by a column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.data.dataset import Dataset, dataset_from_arrays
from fedkd.data.kinds import TEXT
from fedkd.data.memory_budget import check_memory_budget
from fedkd.data.partitions.stratified import own_test_split
from fedkd.data.request import ProgressCallback, SourceRequest
from fedkd.data.sources.table_file import (
    MAX_CATEGORIES,
    NUMBER,
    clean_column,
    read_table_file,
    whole_numbers,
)
from fedkd.data.sources.tokenizer import token_ids
from fedkd.errors import MAX_LISTED_ITEMS, UserError, did_you_mean, refuse_if

if TYPE_CHECKING:
    import pyarrow as pa

KEY = "data.args.columns"
NAMES, LISTS = ("label", "client", "split", "text"), ("features", "ignore", "categorical")
MISSING = "(missing)"
"""Category of missing values."""


def load(request: SourceRequest) -> Dataset:
    """Return the features of a table as float32 vectors, and one of its columns as labels.

    `columns` names the columns: `label`, which is required; `features`, by default "rest", all others;
    `client`, the owners for the partition scheme `natural`; `split`, with the values train and test;
    `ignore`; and `categorical`, the features whose numbers are categories. Without `split` a share of every
    class is the test split (`test_share`, `split_seed`). In regression, `label` is a numeric column, or a
    list of them.

    With a column `text`, samples are the token ids of its texts, by the `tokenizer` (see
    `fedkd.data.sources.tokenizer`), and no other column is a feature.

    Text, booleans and dictionaries are categories: one column of zeros and ones for each value in the file,
    sorted. Missing values are refused, or `missing` says what becomes of them: "drop" leaves their rows out;
    "mean" puts the mean of the training rows in their place, and gives those of a category a column.
    """
    args = request.arguments(
        path=str, columns=dict, missing=str, tokenizer=dict, test_share=0.2, split_seed=0
    )
    path = request.path(args["path"])
    return from_table(read_table_file(path), path, request, args)


def from_table(table: pa.Table, path: Path, request: SourceRequest, args: Mapping[str, Any]) -> Dataset:
    """Return the samples of a table by the arguments of `load`; `path` is the file that messages name."""
    told = f"must be 'mean' or 'drop', got {args['missing']!r}"
    refuse_if(args["missing"] not in (None, "mean", "drop"), told, "data.args.missing")
    roles = read_roles(args["columns"] or {}, table.column_names, several_labels=request.regression)
    frame = _complete(_clean(table, roles, path), roles, args["missing"], path, request.progress)
    labels: np.ndarray
    if request.regression:
        labels, classes = _targets(frame, roles, path), list(roles.labels)
    else:
        labels, classes = _labels(frame[roles.labels[0]], f"{path.name}: column '{roles.labels[0]}'")
    if roles.split is None:
        test = own_test_split(labels, args["test_share"], args["split_seed"])
    else:
        test = _test_rows(frame[roles.split], f"{path.name}: column '{roles.split}'")
    owners = None
    if roles.client is not None:
        codes, names = encode(_as_text(frame[roles.client]))
        owners = np.array(names)[codes]
    kind, features = None, tuple[str, ...]()
    if roles.text is None:
        refuse_if(args["tokenizer"] is not None, "needs columns.text", "data.args.tokenizer")
        x, features = _features(frame, roles, ~test, path, request.progress)
    else:
        texts = _as_text(frame[roles.text]).to_pylist()
        where = f"{path.name}: column '{roles.text}'"
        x, size = token_ids(texts, ~test, labels, request, where, owners)
        kind = replace(TEXT, vocabulary=size)
    found = dataset_from_arrays(
        request.name,
        *(x[~test], labels[~test], x[test], labels[test]),
        class_names=classes,
        owners=None if owners is None else owners[~test],
        regression=request.regression,
        kind=kind,
        key="data.args",
    )
    return replace(found, feature_names=features)


@dataclass(frozen=True)
class Roles:
    """The columns of a table by what they are for."""

    labels: tuple[str, ...]  # one; in regression, the targets
    client: str | None
    split: str | None
    features: tuple[str, ...]
    categorical: tuple[str, ...]
    text: str | None = None

    @property
    def others(self) -> tuple[str, ...]:
        """The columns that are not features."""
        return (*self.labels, *(one for one in (self.client, self.split, self.text) if one is not None))


def read_roles(columns: Mapping[str, Any], known: list[str], *, several_labels: bool = False) -> Roles:
    """Check `data.args.columns` against the names that a table has."""
    there = set(known)
    for key, value in columns.items():
        told = f"unknown key; {did_you_mean(key, (*NAMES, *LISTS))}"
        refuse_if(key not in (*NAMES, *LISTS), told, f"{KEY}.{key}")
        is_list = key not in NAMES or (several_labels and key == "label" and isinstance(value, list))
        named = [] if (key, value) == ("features", "rest") else value if is_list else [value]
        fits = isinstance(named, list) and all(isinstance(name, str) for name in named)
        told = f"must be {'the name of a column' if key in NAMES else 'a list of columns'}, got {value!r}"
        refuse_if(not fits, told, f"{KEY}.{key}")
        refuse_if(len(set(named)) < len(named), f"names a column twice: {named}", f"{KEY}.{key}")
        for name in [name for name in named if name not in there]:
            raise UserError(f"no column '{name}'; {did_you_mean(name, known)}", key=f"{KEY}.{key}")
    listed = ", ".join(known[:MAX_LISTED_ITEMS]) + ", …" * (len(known) > MAX_LISTED_ITEMS)
    told = f"must name the column with the classes; the table has {listed}"
    refuse_if("label" not in columns, told, f"{KEY}.label")
    labels = columns["label"] if isinstance(columns["label"], list) else [columns["label"]]
    refuse_if(not labels, "must name the columns of the targets", f"{KEY}.label")
    roles = [*labels, *(columns[key] for key in NAMES[1:] if key in columns)]
    told = f"label, client, split and text must be different columns, got {', '.join(roles)}"
    refuse_if(len(set(roles)) < len(roles), told, KEY)
    features, out = columns.get("features", "rest"), {*roles, *columns.get("ignore", ())}
    client, split, text = (columns.get(key) for key in NAMES[1:])
    if text is not None:
        for key in ("features", "categorical"):
            refuse_if(key in columns, "must be absent beside a column of text", f"{KEY}.{key}")
        return Roles(tuple(labels), client, split, (), (), text)
    if features == "rest":
        features = [name for name in known if name not in out]
    told = "must not hold the label or the split"
    refuse_if({*labels, split} & set(features), told, f"{KEY}.features")
    refuse_if(not features, "leaves no column to learn from", f"{KEY}.features")
    categorical = columns.get("categorical", [])
    refuse_if(not set(categorical) <= set(features), "must be features", f"{KEY}.categorical")
    return Roles(tuple(labels), client, split, tuple(features), tuple(categorical))


def _clean(table: pa.Table, roles: Roles, path: Path) -> dict[str, pa.ChunkedArray]:
    kinds = dict.fromkeys(roles.features, "most") | dict.fromkeys(roles.categorical, "none")
    kinds |= {name: "all" if name in roles.labels else "none" for name in roles.others}
    cleaned = {name: clean_column(table, name, path, numbers=kind) for name, kind in kinds.items()}
    return cleaned | {name: _as_text(cleaned[name]) for name in roles.categorical}


def _complete(
    columns: dict[str, pa.ChunkedArray],
    roles: Roles,
    missing: str | None,
    path: Path,
    progress: ProgressCallback,
) -> pa.Table:
    """Return the columns as one table, after missing values were refused or rows with some left out."""
    import pyarrow as pa

    frame = pa.table(columns)
    for name, column in columns.items():
        where, count = f"{path.name}: column '{name}'", column.null_count
        empty = f"{where} holds no value; put it under ignore"
        refuse_if(count == frame.num_rows, empty, "data.args.path")
        if missing == "drop" or count == 0:
            continue
        told = f"{where}: {count:,} of {frame.num_rows:,} values are missing;"
        refuse_if(name in roles.others, f'{told} missing = "drop" leaves their rows out', "data.args.missing")
        told = f'{told} set missing = "mean", or "drop" for their rows'
        refuse_if(missing is None, told, "data.args.missing")
    if missing != "drop":
        return frame
    complete = frame.drop_null()
    refuse_if(complete.num_rows == 0, f"every row of {path} has a missing value", "data.args.missing")
    progress(f"{path.name}: {frame.num_rows - complete.num_rows:,} rows of {frame.num_rows:,} dropped")
    return complete


def encode(column: pa.ChunkedArray) -> tuple[np.ndarray, list[Any]]:
    """Return codes [n] int64, -1 for missing values, and the sorted values that they number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = sorted(pc.unique(column.drop_null()).to_pylist())
    codes = pc.index_in(column, value_set=pa.array(values, column.type))
    return pc.fill_null(codes, -1).to_numpy().astype(np.int64), values


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return text, of whole numbers without a point."""
    import pyarrow as pa

    if column.type == pa.string():
        return column
    return (column.cast(pa.int64()) if whole_numbers(column) else column).cast(pa.string())


def _labels(column: pa.ChunkedArray, where: str) -> tuple[np.ndarray, list[str]]:
    import pyarrow.compute as pc

    quantity = '; it looks like a quantity: set data.task = "regression"'
    refuse_if(not whole_numbers(column), f"{where} holds numbers with fractions{quantity}", f"{KEY}.label")
    count = pc.count_distinct(column, mode="only_valid").as_py()
    refuse_if(count > MAX_CATEGORIES, f"{where} has {count:,} values{quantity}", f"{KEY}.label")
    codes, values = encode(column)
    refuse_if(count < 2, f"{where} has one class only, '{values[0]}'", f"{KEY}.label")
    return codes, [value if isinstance(value, str) else str(int(value)) for value in values]


def _targets(frame: pa.Table, roles: Roles, path: Path) -> np.ndarray:
    """Return the targets [n, O] float64."""
    import pyarrow.compute as pc

    for name in roles.labels:
        if str(frame[name].type) == "string":
            numeric = pc.match_substring_regex(frame[name], NUMBER)
            row = max(pc.index(numeric, False).as_py(), 0)
            told = f"{path.name}: column '{name}', row {row + 1} holds '{frame[name][row].as_py()[:50]}'"
            raise UserError(f"{told}; targets of regression must be numbers", key=f"{KEY}.label")
    return np.column_stack([frame[name].to_numpy() for name in roles.labels])


def _test_rows(column: pa.ChunkedArray, where: str) -> np.ndarray:
    codes, values = encode(_as_text(column))
    if values != ["test", "train"]:
        told = f"{where} must have the values train and test, it has {', '.join(values[:5])}"
        raise UserError(told, key=f"{KEY}.split")
    return codes == 0


def _features(
    frame: pa.Table, roles: Roles, train: np.ndarray, path: Path, progress: ProgressCallback
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the features [n, F] float32 and their F names."""
    import pyarrow as pa
    import pyarrow.compute as pc

    encoded, lists = {}, {}
    for name in roles.features:
        if frame[name].type == pa.string():
            count = pc.count_distinct(frame[name], mode="only_valid").as_py()
            told = f"{path.name}: column '{name}' has {count:,} categories, at most {MAX_CATEGORIES:,} fit;"
            refuse_if(count > MAX_CATEGORIES, f"{told} put it under ignore", KEY)
            encoded[name], values = encode(frame[name])
            lists[name] = values + [MISSING] * bool(frame[name].null_count)
    names = [
        f"{name} = {value}" if name in lists else name
        for name in roles.features
        for value in lists.get(name, [name])
    ]
    width = len(names)
    check_memory_budget(4 * frame.num_rows * width, f"{path} takes", "data.args")
    x, start = np.zeros((frame.num_rows, width), np.float32), 0
    for name in roles.features:
        if name not in lists:
            x[:, start] = _filled(frame[name], train, f"{path.name}: column '{name}'")
            start += 1
            continue
        # The code of missing values is -1, and their category is the last one.
        x[np.arange(len(x)), start + encoded[name] % len(lists[name])] = 1.0
        start += len(lists[name])
        more = f", … ({len(lists[name])} in all)" if len(lists[name]) > MAX_LISTED_ITEMS else ""
        progress(f"{path.name}: {name} is one of {', '.join(lists[name][:MAX_LISTED_ITEMS])}{more}")
    return x, tuple(names)


def _filled(column: pa.ChunkedArray, train: np.ndarray, where: str) -> np.ndarray:
    """Return numbers [n] with the mean of the training rows in the place of missing ones."""
    values = column.to_numpy()
    absent = np.isnan(values)
    if not absent.any():
        return values
    # Sorted: the mean of the same rows in another order is the same.
    present = np.sort(values[train & ~absent])
    refuse_if(not len(present), f"{where} holds no value in a training row", "data.args.missing")
    return np.where(absent, present.mean(), values)
