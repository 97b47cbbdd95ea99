"""Samples without normalisation: pixels, numbers and token ids."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import fedkd
from fedkd.data.kinds import KINDS
from fedkd.data.load import load_data
from fedkd.data.registry import DATASETS
from fedkd.errors import UserError
from fedkd.models.build import build_model, forward_flops
from fedkd.models.registry import MODELS
from fedkd.plan.load import parse_plan, parse_scenario
from fedkd.scenario.schema import ClientGroup
from fedkd.simulation.scenario_check import check_plan

pytestmark = pytest.mark.usefixtures("no_report")

LENGTH, BIG = 6, 2**24 + 1  # an id that float32 cannot hold
SEEN: set[torch.dtype] = set()


class Reader(nn.Module):
    """Class scores from the mean of token embeddings."""

    def __init__(self, shape, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, classes)

    def features(self, x):
        SEEN.add(x.dtype)
        return self.embedding(x % 50).mean(dim=1)

    def forward(self, x):
        return self.head(self.features(x))


def sentences(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Class 0 uses tokens 0 to 24, class 1 those from 25 on; the first id of all is huge."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 2
    x = rng.integers(0, 25, (count, LENGTH)) + 25 * y[:, None]
    x[:, 0] += (BIG // 50) * 50
    return x.astype(np.int32), y


def tokens(seed: int = 0):
    return *sentences(160, seed), *sentences(40, seed + 1)


def numbers():
    (x, y), (test_x, test_y) = sentences(160, 0), sentences(40, 1)
    return x / 7.0, y, test_x / 7.0, test_y


@pytest.fixture
def plugged(monkeypatch):
    for registry, parts in ((DATASETS, {"tokens": tokens, "numbers": numbers}), (MODELS, {"reader": Reader})):
        for name, part in parts.items():
            monkeypatch.setitem(registry._registered, name, part)


@pytest.fixture
def tables(plugged, digits_scenario) -> dict:
    return digits_scenario | {
        "rounds": 3,
        "clients": [{"model": "reader"}],
        "data": {
            "dataset": "tokens",
            "normalise": False,
            "clients": 3,
            "partition": {"scheme": "iid"},
            "transfer": {"size": 20},
        },
        "training": {"lr": 0.03, "batch_size": 16},
    }


def test_token_ids_reach_the_model_unchanged(tables):
    data = load_data(parse_scenario(tables))
    stored, labels, test_x, _ = tokens()
    assert data.input_dtype == data.x.dtype == data.transfer_x.dtype == data.test_x.dtype == np.int64
    assert data.x.max() > 2**24
    assert np.array_equal(data.x, stored[data.source_index])
    assert np.array_equal(data.y, labels[data.source_index])
    assert np.array_equal(data.test_x, test_x)
    assert {row.tobytes() for row in data.transfer_x} <= {row.astype(np.int64).tobytes() for row in stored}
    assert any("samples of 6 integers" in line for line in check_plan(parse_plan(tables)))


def test_token_ids_of_an_npz_are_unchanged_unless_normalised(tables, tmp_path):
    stored = dict(zip(("train_x", "train_y", "test_x", "test_y"), tokens(), strict=True))
    np.savez(tmp_path / "text.npz", **stored)
    tables["data"] |= {"dataset": "npz", "args": {"path": str(tmp_path / "text.npz")}}
    data = load_data(parse_scenario(tables))
    assert data.x.dtype == np.int64 and np.array_equal(data.x, stored["train_x"][data.source_index])
    tables["data"]["normalise"] = True
    data = load_data(parse_scenario(tables))
    assert data.x.dtype == np.float32 and abs(data.x).max() < 10


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_pixels_are_divided_by_255_and_numbers_are_unchanged(dtype, digits_scenario, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (120, 4, 5)).astype(dtype)
    np.savez(tmp_path / "images.npz", x=x, y=np.arange(120) % 3)
    digits_scenario["data"] |= {
        "dataset": "npz",
        "args": {"path": str(tmp_path / "images.npz")},
        "normalise": False,
        "partition": {"scheme": "iid"},
        "transfer": {"size": 10},
    }
    scenario = parse_scenario(digits_scenario)
    data = load_data(scenario)
    assert data.x.dtype == np.float32
    wanted = (x / 255 if dtype == np.uint8 else x).astype(np.float32)[:, None]
    every = np.concatenate([data.x, data.transfer_x, data.test_x])
    assert sorted(row.tobytes() for row in every) == sorted(row.tobytes() for row in wanted)


@pytest.mark.parametrize("strategy", ["fedmd", "flwr:FedAvg", "feddf", "fedproto"])
def test_a_model_of_token_ids_learns(strategy, tables, tmp_path):
    SEEN.clear()
    scenario = parse_scenario(tables | {"fusion": {"strategy": strategy}})
    folder = fedkd.run(scenario, out=tmp_path / "run").folder
    assert {torch.int64} == SEEN
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["final"]["accuracy_global"]["mean"] > 0.75  # half by chance


def test_the_transfer_set_may_have_other_token_ids(tables, tmp_path):
    x, y = sentences(90, 9)
    np.savez(tmp_path / "other.npz", x=x, y=y)
    tables["data"]["transfer"] = {"source": "npz", "size": 30, "args": {"path": str(tmp_path / "other.npz")}}
    found = load_data(parse_scenario(tables)).transfer_x
    assert found.dtype == np.int64 and len(found) == 30
    assert {row.tobytes() for row in found} <= {row.astype(np.int64).tobytes() for row in x}


def test_replay_stores_token_ids(tables, tmp_path):
    del tables["rounds"]
    tables["continual"] = {"learner": "er", "head": "class", "tasks": {"kind": "permuted", "count": 2}}
    SEEN.clear()
    assert fedkd.run(parse_scenario(tables), out=tmp_path / "run")
    assert {torch.int64} == SEEN


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        (
            {"data": {"transfer": {"source": "noise", "size": 9}}},
            "data.transfer.source",
            "noise does not fit token ids",
        ),
        (
            {"data": {"transfer": {"source": "numbers", "size": 9}}},
            "data.transfer.source",
            "are vectors, the private ones token ids",
        ),
        ({"heterogeneity": {"noise": 0.1}}, "heterogeneity.noise", "samples are token ids"),
        (
            {"continual": {"tasks": {"kind": "datasets", "datasets": ["tokens", "numbers"]}}},
            "continual.tasks.datasets.1",
            "samples of 'numbers' are vectors, those of 'tokens' token ids",
        ),
    ],
)
def test_impossible_integer_data_are_refused(changes, key, message, tables):
    tables["data"] |= changes.pop("data", {})
    if "continual" in changes:
        del tables["rounds"]
    with pytest.raises(UserError, match=message) as caught:
        load_data(parse_scenario(tables | changes))
    assert caught.value.key == key


def test_label_noise_works_with_stored_data(tables):
    tables["heterogeneity"] = {"label_noise": 0.4}
    data = load_data(parse_scenario(tables))
    assert np.array_equal(data.x, tokens()[0][data.source_index])
    assert not np.array_equal(data.y, tokens()[1][data.source_index])


def test_models_are_checked_on_samples_of_their_type(plugged):
    reader = build_model(ClientGroup(model="reader"), (LENGTH,), 2, seed=1, kind=KINDS["text"])
    assert forward_flops(reader, (LENGTH,), np.int64) == 2 * 8 * 2
    with pytest.raises(
        UserError, match=r"'mlp' takes images .* but the samples are token ids \[6\]; use 'bag'"
    ):
        build_model(ClientGroup(model="mlp"), (LENGTH,), 2, seed=1, kind=KINDS["text"])
    with pytest.raises(UserError, match=r"fails on an input \[2, 6\] with"):
        build_model(ClientGroup(model="reader"), (LENGTH,), 2, seed=1)
