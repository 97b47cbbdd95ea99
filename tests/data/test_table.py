"""Tables: what becomes of their columns, and that they equal the same arrays from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedkd
from fedkd.data.dataset import Dataset
from fedkd.data.federated import load_federated_data
from fedkd.data.registry import load_dataset
from fedkd.data.request import SourceRequest
from fedkd.data.sources.table_file import read_table_file
from fedkd.errors import UserError

pa = pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("no_report")

SITES = ("Oslo", "Bonn", "Rome")
COLUMNS = {"label": "grade", "client": "site", "split": "fold"}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """300 rows with numbers, text and booleans; columns in the order of their names."""
    draw = np.random.default_rng(3)
    return [
        {
            "age": round(float(draw.normal(50, 9)), 3),
            "fold": "test" if n % 5 == 0 else "train",
            "grade": int(draw.choice([10, 9, 2])),
            "kind": str(draw.choice(["b", "a", "c"])),
            "site": SITES[n % 3],
            "smokes": bool(draw.random() < 0.3),
            "visits": int(draw.integers(0, 9)),
        }
        for n in range(300)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    from pyarrow import csv, ipc, parquet

    table = pa.Table.from_pylist(rows)
    if path.suffix in (".csv", ".tsv"):
        csv.write_csv(table, path, csv.WriteOptions(delimiter=",\t"[path.suffix == ".tsv"]))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    return path


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    """Load rows: `load(rows, ".csv", missing="mean")`."""

    def loaded(
        rows: list[dict[str, Any]], suffix: str = ".parquet", progress: Any = None, **args: Any
    ) -> Dataset:
        path = write(tmp_path / f"rows{suffix}", rows)
        args = {"path": path.name, "columns": COLUMNS} | args
        return load_dataset(SourceRequest("table", tmp_path, args, progress=progress or (lambda line: None)))

    return loaded


def by_loops(rows: list[dict[str, Any]]) -> np.ndarray:
    """Return the features of `rows` one by one: age, kind, smokes, visits."""
    found = [
        [
            row["age"],
            *(float(row["kind"] == kind) for kind in "abc"),
            *(float(row["smokes"] is smokes) for smokes in (False, True)),
            row["visits"],
        ]
        for row in rows
    ]
    return np.array(found, dtype=np.float32)


def assert_equal(ours: Dataset, theirs: Dataset) -> None:
    for name in ("train_x", "train_y", "test_x", "test_y", "owners"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert one.dtype == other.dtype and np.array_equal(one, other), name
    assert ours.class_names == theirs.class_names


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".arrow"])
def test_every_format_gives_the_same_arrays(suffix, rows, load):
    found = load(rows, suffix)
    train = [row for row in rows if row["fold"] == "train"]
    test = [row for row in rows if row["fold"] == "test"]
    assert np.array_equal(found.train_x, by_loops(train)) and np.array_equal(found.test_x, by_loops(test))
    assert found.train_x.dtype == np.float32
    assert found.class_names == ("2", "9", "10"), "numbers are sorted as numbers"
    assert [found.class_names[y] for y in found.train_y] == [str(row["grade"]) for row in train]
    assert [found.class_names[y] for y in found.test_y] == [str(row["grade"]) for row in test]
    assert found.owners is not None and found.owners.tolist() == [row["site"] for row in train]


def test_a_stream_of_arrow_batches_is_read(rows, load, tmp_path):
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=7)
    found = load_dataset(SourceRequest("table", tmp_path, {"path": "stream.arrow", "columns": COLUMNS}))
    assert_equal(found, load(rows))


def test_dictionaries_dates_and_decimals_are_columns_too(load, tmp_path):
    n = 40
    columns = {
        "kind": pa.array(["x", None, "y", "x"] * 10).dictionary_encode(),
        "code": pa.array([7, 30, 7, 7] * 10).dictionary_encode(),
        "day": pa.array([0, 1, 0, 1] * 10, pa.date32()),
        "price": pa.array(list(map(Decimal, range(1, 5))) * 10, pa.decimal128(5, 2)),
        "large": pa.array(["x", "z", "x", "x"] * 10, pa.large_string()),
        "label": pa.array([True, False] * (n // 2)),
    }
    with pa.ipc.new_file(tmp_path / "t.arrow", pa.table(columns).schema) as file:
        file.write_table(pa.table(columns))
    args = {"path": "t.arrow", "columns": {"label": "label"}, "missing": "mean"}
    found = load_dataset(SourceRequest("table", tmp_path, args))
    both = {tuple(x) for x in np.concatenate([found.train_x, found.test_x]).tolist()}
    assert both == {
        # kind x, y, missing; code 30, 7; day 0, 1; price; large x, z
        (1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0),
        (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 2.0, 0.0, 1.0),
        (0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 3.0, 1.0, 0.0),
        (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 4.0, 1.0, 0.0),
    }
    assert found.class_names == ("false", "true") and found.owners is None and len(found.test_x) == 8


def test_the_order_of_rows_changes_only_the_order(rows, load):
    for n in range(0, 300, 7):
        rows[n] |= {"age": None, "kind": None}
    order = np.random.default_rng(1).permutation(300)
    one, other = (load(these, ".jsonl", missing="mean") for these in (rows, [rows[n] for n in order]))
    train = np.array([row["fold"] == "train" for row in rows])
    place = np.cumsum(train) - 1
    moved = place[order[train[order]]]
    assert np.array_equal(other.train_x, one.train_x[moved]) and np.array_equal(
        other.train_y, one.train_y[moved]
    )
    assert one.owners is not None and np.array_equal(other.owners, one.owners[moved])
    assert other.class_names == one.class_names


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_missing_values_become_the_training_mean_or_a_category(suffix, rows, load):
    for n in range(0, 300, 7):
        rows[n] |= {"age": None, "kind": None}
    found = load(rows, suffix, missing="mean")
    train = [row for row in rows if row["fold"] == "train"]
    ages = [row["age"] for row in train if row["age"] is not None]
    absent = np.array([row["age"] is None for row in train])
    assert absent.any() and np.allclose(found.train_x[absent, 0], sum(ages) / len(ages), rtol=1e-6)
    assert np.array_equal(found.train_x[~absent, 0], np.array(ages, np.float32))
    assert np.array_equal(found.train_x[:, 4], absent.astype(np.float32)), "a, b, c, missing"
    assert (found.train_x[:, 1:5].sum(axis=1) == 1).all()


def test_rows_with_missing_values_are_dropped_and_counted(rows, load):
    rows[1] |= {"age": None}
    rows[2] |= {"site": None}
    rows[3] |= {"grade": None}
    lines: list[str] = []
    found = load(rows, ".csv", lines.append, missing="drop")
    assert "rows.csv: 3 rows of 300 dropped" in lines
    assert "rows.csv: kind is one of a, b, c" in lines
    assert_equal(found, load([row for n, row in enumerate(rows) if n not in (1, 2, 3)]))


def test_columns_are_chosen_ignored_and_made_categories(rows, load):
    columns = COLUMNS | {"features": ["visits", "age"], "categorical": ["visits"]}
    found = load(rows, columns=columns)
    train = [row for row in rows if row["fold"] == "train"]
    assert np.array_equal(found.train_x[:, :9].argmax(axis=1), [row["visits"] for row in train])
    assert found.shape == (10,) and np.array_equal(found.train_x[:, 9], by_loops(train)[:, 0])
    assert load(rows, columns=COLUMNS | {"ignore": ["kind", "smokes"]}).shape == (2,)
    assert load(rows, ".csv", columns=columns).shape == (10,)


def test_spaces_around_values_and_names_are_no_part_of_them(load, tmp_path):
    lines = [f"{n},  {'yes' if n % 2 else ' no'} , {n % 3}" for n in range(60)]
    (tmp_path / "adult.csv").write_text("\n".join(["age, smokes , label", *lines]))
    args = {"path": "adult.csv", "columns": {"label": "label"}}
    found = load_dataset(SourceRequest("table", tmp_path, args))
    assert found.shape == (3,) and found.class_names == ("0", "1", "2")
    assert np.array_equal(found.train_x[:, 2], found.train_x[:, 0] % 2)


# Runs -------------------------------------------------------------------------------------------------------


def tables(
    digits_scenario: dict[str, Any], folder: Path, dataset: str, args: dict[str, Any]
) -> dict[str, Any]:
    data = {"dataset": dataset, "args": args, "root": str(folder), "clients": 3, "transfer": {"size": 20}}
    data["partition"] = {"scheme": "natural"}
    models = [{"model": "mlp", "args": {"hidden": [8]}}]
    return digits_scenario | {"rounds": 2, "data": data, "clients": models}


def test_the_run_of_a_table_equals_that_of_its_arrays(rows, load, digits_scenario, tmp_path):
    found = load(rows)
    names = ("train_x", "train_y", "test_x", "test_y", "owners")
    arrays = {name: getattr(found, name) for name in names}
    np.savez(tmp_path / "rows.npz", class_names=np.array(found.class_names), **arrays)
    args = {"table": {"path": "rows.parquet", "columns": COLUMNS}, "npz": {"path": "rows.npz"}}
    runs = [
        fedkd.run(tables(digits_scenario, tmp_path, name, args[name]), out=tmp_path / name, progress=False)
        for name in args
    ]
    metrics = [(run.folder / "metrics.jsonl").read_bytes() for run in runs]
    assert metrics[0] and metrics[0] == metrics[1]
    weights = [
        [*map(np.asarray, fedkd.load_client(run.folder, 1).model.state_dict().values())] for run in runs
    ]
    assert all(np.array_equal(one, other) for one, other in zip(*weights, strict=True))


def test_clients_are_a_disjoint_cover_of_the_rows(rows, load, scenario, tmp_path):
    for n, row in enumerate(rows):
        row["age"] = n  # tells rows apart
    load(rows)
    partition = {"scheme": "natural"}
    args = {"path": "rows.parquet", "columns": COLUMNS}
    given = scenario(
        dataset="table",
        args=args,
        root=str(tmp_path),
        clients=3,
        partition=partition,
        transfer={"size": 20},
        normalise=False,
    )
    data = load_federated_data(given)
    assert data.owners == tuple(sorted(SITES))
    ages: list[float] = data.transfer_x[:, 0].tolist()
    for client, site in enumerate(data.owners):
        own = data.client(client)
        these = [*own.train_x[:, 0].tolist(), *own.test_x[:, 0].tolist()]
        assert {rows[int(age)]["site"] for age in these} == {site}
        ages += these
    assert sorted(ages) == [n for n in range(300) if n % 5]


def test_quoted_newlines_and_quotes_inside_text_are_values(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'\xef\xbb\xbf"size\nin cm",note\r\n1,"two\r\nlines"\r\n2,"a ""b"""\r\n3,5" pipe\r\n4,"x"y\r\n5,"\n"'
    )
    table = read_table_file(path)
    assert table.column_names == ["size\nin cm", "note"]
    assert table["note"].to_pylist() == ["two\r\nlines", 'a "b"', '5" pipe', "xy", "\n"]


def test_a_transfer_table_needs_the_same_columns_and_categories(rows, scenario, tmp_path):
    write(tmp_path / "rows.parquet", rows)
    args = {"path": "rows.parquet", "columns": COLUMNS}
    public = {"source": "table", "size": 20, "args": {**args, "path": "public.parquet"}}

    def transfer(changed: list[dict[str, Any]]) -> np.ndarray:
        write(tmp_path / "public.parquet", changed)
        given = scenario(
            dataset="table", args=args, root=str(tmp_path), clients=3, transfer=public, normalise=False
        )
        return load_federated_data(given).transfer_x

    reordered = [dict(reversed(row.items())) for row in rows]
    assert np.array_equal(transfer(reordered), transfer(rows))
    for other, told in (("d", "lack columns or categories unlike the private ones: kind = c"), ("b", "lack")):
        renamed = [row | {"kind": other if row["kind"] == "c" else row["kind"]} for row in rows]
        with pytest.raises(UserError, match=f"data.transfer.source: samples of 'table' {told}"):
            transfer(renamed)
    added = [*rows, rows[1] | {"kind": "d"}]
    with pytest.raises(UserError, match="have columns or categories unlike the private ones: kind = d"):
        transfer(added)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".arrow"])
def test_a_table_with_too_many_columns_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("fedkd.data.sources.table_file.MAX_COLUMNS", 3)
    three = write(tmp_path / f"three{suffix}", [{"a": 1, "b": 2, "c": 3}])
    assert len(read_table_file(three).column_names) == 3
    four = write(tmp_path / f"four{suffix}", [{"a": 1, "b": 2, "c": 3, "d": 4}])
    with pytest.raises(UserError, match="has 4 columns, at most 3 fit"):
        read_table_file(four)
