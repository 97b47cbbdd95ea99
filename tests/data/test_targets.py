"""Targets of regression from tables, arrays and functions, and their partitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fedkd.data.federated import load_federated_data
from fedkd.data.targets import target_bins
from fedkd.errors import UserError
from fedkd.scenario.schema import Scenario

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(200, 3))
Y = np.stack([50 + 10 * X[:, 0], X[:, 1] - X[:, 2]], axis=1)


def load(dataset: str, args: dict[str, Any], **data: Any):
    tables: dict[str, Any] = {
        "dataset": dataset,
        "args": args,
        "task": "regression",
        "clients": 3,
        "partition": {"scheme": "iid"},
        "transfer": {"size": 20},
    }
    return load_federated_data(Scenario.model_validate({"data": tables | data}))


@pytest.fixture
def write(tmp_path: Path):
    def write(y: np.ndarray, name: str = "a.npz", **more: np.ndarray) -> dict[str, Any]:
        np.savez(tmp_path / name, x=X[: len(y)], y=y, **more)
        return {"path": str(tmp_path / name)}

    return write


def write_table(folder: Path, cell: str | None = None, row: int = 7) -> str:
    lines = ["a,b,c,kind,pressure,rate,site"]
    for n, (x, y) in enumerate(zip(X, Y, strict=True)):
        values = [*map(repr, map(float, x)), "uv"[n % 2], *map(repr, map(float, y)), f"s{n % 3}"]
        if cell is not None and n == row:
            values[4] = cell
        lines.append(",".join(values))
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "t.csv")


def test_targets_have_mean_0_and_variance_1_over_the_train_split(write):
    data = load("npz", write(Y))
    assert data.scale is not None and data.scale.names == ("target 0", "target 1")
    assert data.y.dtype == np.float32 and data.y.shape == (len(data.x), 2)
    private, held_out = data.scale.original(data.y), data.scale.original(data.transfer_y)
    everything = np.concatenate([private, held_out])
    assert_allclose(everything.mean(axis=0), data.scale.mean, rtol=1e-5, atol=1e-6)
    assert_allclose(everything.std(axis=0), data.scale.std, rtol=1e-5)
    assert set(np.round(everything[:, 0], 3)) <= set(np.round(Y[:, 0], 3))


@pytest.mark.parametrize("y", [Y[:, 0], Y[:, :1], np.arange(200)])
def test_one_target_may_be_a_vector_or_integers(y, write):
    data = load("npz", write(y))
    assert data.y.shape[1] == 1 and data.classes == 2
    assert load("npz", write(y), head="mean").classes == 1


def test_a_table_equals_the_same_arrays(write, tmp_path):
    pytest.importorskip("pyarrow")
    columns = {"label": ["pressure", "rate"], "features": ["a", "b", "c"]}
    of_table = load("table", {"path": write_table(tmp_path), "columns": columns})
    of_arrays = load("npz", write(Y, class_names=np.array(["pressure", "rate"])))
    assert of_table.scale is not None and of_table.scale.names == ("pressure", "rate")
    for name in ("x", "y", "test_x", "test_y", "transfer_x", "source_index"):
        np.testing.assert_array_equal(getattr(of_table, name), getattr(of_arrays, name))


def test_natural_clients_have_targets(tmp_path):
    pytest.importorskip("pyarrow")
    args = {"path": write_table(tmp_path), "columns": {"label": "pressure", "client": "site"}}
    data = load("table", args, partition={"scheme": "natural"})
    assert sorted(data.owners) == ["s0", "s1", "s2"] and data.input_shape == (6,)  # `rate`, and 2 of `kind`


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("often", "column 'pressure', row 8 holds 'often'; targets of regression must be numbers"),
        ("inf", "column 'pressure', row 8 holds inf; numbers must be within"),
        ("", "column 'pressure': 1 of 200 values are missing; missing = \"drop\" leaves their rows out"),
        ("nan", "column 'pressure': 1 of 200 values are missing"),
    ],
)
def test_a_bad_target_of_a_table_is_named_in_one_line(cell, told, tmp_path):
    pytest.importorskip("pyarrow")
    args = {"path": write_table(tmp_path, cell), "columns": {"label": "pressure"}}
    with pytest.raises(UserError) as caught:
        load("table", args)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("y", "told"),
    [
        (np.where(np.arange(200) == 7, np.nan, Y[:, 0]), "train_y, row 8 holds nan; targets must be within"),
        (np.where(np.arange(200) == 7, -np.inf, Y[:, 0]), "train_y, row 8 holds -inf"),
        (Y[:, 0].astype(str), "train_y must be numeric targets [n] or [n, O], got <U"),
        (Y[:, :, None], "train_y must be numeric targets [n] or [n, O], got float64 of shape (200, 2, 1)"),
    ],
)
def test_a_bad_target_of_an_array_is_named_in_one_line(y, told, write):
    with pytest.raises(UserError) as caught:
        load("npz", write(y))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_data_and_task_must_fit():
    with pytest.raises(UserError, match=r"'digits' has classes; data.task = 'regression' needs numeric"):
        load("digits", {})
    with pytest.raises(UserError, match=r'a quantity; set data.task = "regression"'):
        load("diabetes", {}, task=None)


def test_bins_have_equal_numbers_of_samples():
    counts = np.bincount(target_bins(Y, 8))
    assert len(counts) == 8 and counts.sum() == 200 and counts.max() - counts.min() <= 1
    order = np.argsort(Y[:, 0])
    assert (np.diff(target_bins(Y, 8)[order]) >= 0).all()
    assert set(target_bins(np.repeat([1.0, 2.0], [150, 50]), 10)) == {0, 1}


@pytest.mark.parametrize("scheme", ["dirichlet", "dirichlet-per-client", "quantity", "iid"])
@pytest.mark.parametrize("replacement", [False, True])
def test_schemes_deal_targets(scheme, replacement, write):
    own: dict[str, Any] = {"scheme": scheme, "alpha": 0.2, "replacement": replacement, "min_samples": 5}
    if replacement:
        own["samples_per_client"] = 30
    data = load("npz", write(Y), partition=own)
    index = data.source_index
    assert replacement or len(set(index.tolist())) == len(index)
    spread = [data.scale.original(data.client(n).train_y)[:, 0].mean() for n in range(3)]
    if scheme.startswith("dirichlet"):
        assert max(spread) - min(spread) > 2.0, "clients differ in their targets"
    np.testing.assert_array_equal(data.y, load("npz", write(Y), partition=own).y)


def test_bins_change_a_dirichlet_partition_alone(write):
    def index(**own):
        return load("npz", write(Y), partition={"min_samples": 5, **own}).source_index.tolist()

    assert index(scheme="dirichlet", bins=2) != index(scheme="dirichlet", bins=20)
    assert index(scheme="dirichlet", bins=10) == index(scheme="dirichlet")


def test_counts_of_clients_are_by_bins(write):
    data = load("npz", write(Y))
    counts = data.label_counts()
    assert counts.shape == (3, 10) == (3, len(data.class_names))
    assert counts.sum(axis=1).tolist() == [stop - start for start, stop in data.train_bounds]
    assert data.class_names[0].startswith("below ")
