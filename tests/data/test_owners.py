"""Data with owners: synthetic sets and the natural partition."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fedkd
from fedkd.data.dataset import Dataset
from fedkd.data.federated import load_federated_data
from fedkd.data.partitions.schemes import deal_by_owner
from fedkd.data.registry import load_dataset
from fedkd.data.request import SourceRequest
from fedkd.data.streams.stream import load_stream
from fedkd.errors import UserError
from fedkd.plan.load import parse_plan
from fedkd.randomness import numpy_generator
from fedkd.report.page.write import write_report
from fedkd.scenario.schema import Partition
from fedkd.simulation.scenario_check import check_plan

pytestmark = pytest.mark.usefixtures("no_report")


def synthetic(tmp_path, clients: int = 6, **args) -> Dataset:
    return load_dataset(SourceRequest("synthetic", tmp_path, args, clients=clients))


SMALL = {"least": 20, "log_mean": 2.0, "log_std": 1.0}

# Synthetic(α, β) --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iid", [False, True])
def test_synthetic_samples_follow_the_model_of_the_paper(iid, tmp_path):
    data = synthetic(tmp_path, 3, alpha=0.5, beta=2.0, seed=7, features=4, classes=3, iid=iid, **SMALL)
    k = 2
    size_draw = numpy_generator(7, "synthetic-size", client=k).standard_normal()
    size = 20 + int(np.exp(2.0 + 1.0 * size_draw))
    draw = numpy_generator(7, "synthetic", client=k)
    u, centre = 0.5 * draw.normal(), 2.0 * draw.normal()
    if iid:
        common = numpy_generator(7, "synthetic")
        weights = [[common.normal() for _ in range(3)] for _ in range(5)]
        mean = [0.0] * 4
    else:
        weights = [[u + draw.normal() for _ in range(3)] for _ in range(5)]
        mean = [centre + draw.normal() for _ in range(4)]
    samples, labels = [], []
    for _ in range(size):
        x = [mean[j] + (j + 1) ** -0.6 * draw.normal() for j in range(4)]
        scores = [sum(x[j] * weights[j][c] for j in range(4)) + weights[4][c] for c in range(3)]
        samples.append(x)
        labels.append(scores.index(max(scores)))
    tests = round(0.1 * size)
    own = data.owners == k
    assert np.array_equal(data.train_x[own], np.array(samples[:-tests], dtype=np.float32))
    assert data.train_y[own].tolist() == labels[:-tests]
    assert np.array_equal(data.test_x[-tests:], np.array(samples[-tests:], dtype=np.float32))
    assert data.test_y[-tests:].tolist() == labels[-tests:]


def test_synthetic_samples_have_the_covariance_of_the_paper(tmp_path):
    data = synthetic(tmp_path, 40, least=500, most=500)
    assert data.shape == (60,) and data.classes == 10
    of_clients = [data.train_x[data.owners == k] for k in range(40)]
    found = np.mean([x.astype(np.float64).var(axis=0, ddof=1) for x in of_clients], axis=0)
    wanted = np.arange(1, 61) ** -1.2
    assert np.allclose(found / wanted, 1.0, atol=0.06)


def test_beta_controls_feature_skew_and_alpha_keeps_labels(tmp_path):
    def spread_of_means(beta: float) -> float:
        data = synthetic(tmp_path, 60, beta=beta, **SMALL)
        return float(np.std([data.train_x[data.owners == k].mean() for k in range(60)]))

    assert spread_of_means(0.0) < 0.3 < 1.5 < spread_of_means(2.0)
    labels = [synthetic(tmp_path, 20, alpha=alpha, **SMALL).train_y for alpha in (0.0, 3.0)]
    assert np.mean(labels[0] == labels[1]) > 0.999, "but for rounding, u moves all classes' scores alike"
    one_model = synthetic(tmp_path, 60, iid=True, **SMALL)
    assert np.abs(one_model.train_x.mean(axis=0)).max() < 0.2


def test_the_data_of_a_client_ignore_the_number_of_clients(tmp_path):
    few, many = synthetic(tmp_path, 3, **SMALL), synthetic(tmp_path, 9, **SMALL)
    first = many.owners < 3
    assert np.array_equal(few.train_x, many.train_x[first]) and np.array_equal(few.owners, many.owners[first])
    assert len(np.unique(many.owners)) == 9
    assert len(np.unique(np.bincount(many.owners))) > 3, "sizes differ"
    assert not np.array_equal(few.train_x, synthetic(tmp_path, 3, seed=1, **SMALL).train_x)


@pytest.mark.parametrize(
    ("args", "key", "words"),
    [
        ({"alpha": -1.0}, "alpha", "≥ 0"),
        ({"features": 0}, "features", "≥ 1"),
        ({"classes": 1}, "classes", "≥ 2"),
        ({"least": 2}, "least", "≥ 3"),
        ({"most": 10}, "most", r"≥ least \(50\)"),
        ({"test_share": 1.0}, "test_share", "between 0 and 1"),
        ({"log_mean": float("nan")}, "log_mean", "≤ 20"),
        ({"log_std": float("inf")}, "log_std", "≥ 0"),
        ({"clients": 0}, "clients", "≥ 1"),
        ({"sigma": 1}, "sigma", "unknown argument"),
        ({"features": 10**8, "most": 10**6, "log_mean": 19.0}, None, "take .* GB"),
    ],
)
def test_invalid_arguments_are_refused(args, key, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        synthetic(tmp_path, **args)
    assert caught.value.key == (f"data.args.{key}" if key else "data.args")


# The natural partition --------------------------------------------------------------------------------------


def test_clients_are_the_owners_in_order():
    owners = np.array([7, 3, 3, 9, 7, 3, 9, 9, 1, 7])
    parts = deal_by_owner(owners, 3, Partition(scheme="natural", min_samples=3), seed=1)
    assert [part.tolist() for part in parts] == [[1, 2, 5], [0, 4, 9], [3, 6, 7]]


def test_fewer_clients_than_owners_are_drawn_from_the_seed():
    owners = np.repeat(np.arange(30), 4)
    spec = Partition(scheme="natural", min_samples=2)
    chosen = [[owners[part][0] for part in deal_by_owner(owners, 5, spec, seed)] for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2] and chosen[0] == sorted(chosen[0])


@pytest.mark.parametrize(
    ("owners", "key", "words"),
    [
        (None, "data.partition.scheme", "the owner of each sample"),
        (
            np.array([0, 0, 0, 1, 2, 2]),
            "data.clients",
            r"must be ≤ 2, the owners with at least 2 .*of 3 owners",
        ),
    ],
)
def test_too_few_owners_are_refused(owners, key, words):
    with pytest.raises(UserError, match=words) as caught:
        deal_by_owner(owners, 3, Partition(scheme="natural", min_samples=2), 1)
    assert caught.value.key == key


def test_a_federation_of_owners_runs(scenario):
    given = scenario(
        dataset="synthetic",
        args=SMALL | {"features": 5},
        clients=12,
        partition={"scheme": "natural", "min_samples": 5},
        transfer={"size": 30},
        normalise=False,
    )
    data = load_federated_data(given)
    whole = load_dataset(SourceRequest("synthetic", ".", SMALL | {"features": 5}, clients=12))
    for client in range(12):
        own = np.concatenate([data.client(client).train_x, data.client(client).test_x])
        assert {x.tobytes() for x in own} <= {x.tobytes() for x in whole.train_x[whole.owners == client]}
        assert len(own) >= 5
    assert len(data.x) + 30 == len(whole.train_x)


def test_owners_keep_their_samples_in_every_task(digits_scenario):
    tables = {key: value for key, value in digits_scenario.items() if key != "rounds"}
    tables["data"] = {
        "dataset": "synthetic",
        "args": {"least": 200, "log_mean": 1.0, "classes": 4, "iid": True, "features": 8},
        "clients": 4,
        "partition": {"scheme": "natural", "min_samples": 2},
        "transfer": {"size": 20},
        "normalise": False,
    }
    plan = parse_plan(tables | {"continual": {"tasks": {"kind": "split", "count": 2}}})
    stream = load_stream(plan.scenario)
    whole = load_dataset(SourceRequest("synthetic", ".", tables["data"]["args"], clients=4))
    for task in stream:
        for client in range(4):
            own = whole.train_x[whole.owners == client]
            assert {x.tobytes() for x in task.data.client(client).train_x} <= {x.tobytes() for x in own}


def test_an_npz_file_may_name_owners(tmp_path):
    draw = np.random.default_rng(0)
    x, y, owners = draw.random((60, 3)), np.arange(60) % 3, np.arange(60) // 10
    np.savez(tmp_path / "whole.npz", x=x, y=y, owners=owners)
    whole = load_dataset(SourceRequest("npz", tmp_path, {"path": "whole.npz"}))
    of = {sample.astype(np.float32).tobytes(): owner for sample, owner in zip(x, owners, strict=True)}
    assert [of[sample.tobytes()] for sample in whole.train_x] == whole.owners.tolist()
    np.savez(tmp_path / "split.npz", train_x=x, train_y=y, test_x=x[:9], test_y=y[:9], owners=owners)
    split = load_dataset(SourceRequest("npz", tmp_path, {"path": "split.npz"}))
    assert np.array_equal(split.owners, owners)
    np.savez(tmp_path / "wrong.npz", train_x=x, train_y=y, test_x=x[:9], test_y=y[:9], owners=owners[:9])
    with pytest.raises(UserError, match="an integer or a name for each of 60 train samples"):
        load_dataset(SourceRequest("npz", tmp_path, {"path": "wrong.npz"}))


CITIES = """
import numpy as np
from torch import nn

CITY = ["Rome", "Oslo", "Berlin", "Bonn|*"]

def visits():
    draw = np.random.default_rng(0)
    x, y, owners = draw.random((160, 3)), np.arange(160) % 2, np.repeat(CITY, 40)
    return {"train_x": x, "train_y": y, "test_x": x[:20], "test_y": y[:20], "owners": owners}

def words():
    x, y = np.arange(480).reshape(160, 3) % 50, np.arange(160) % 2
    return x, y, x[:20], y[:20]

class Words(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.look_up, self.head = nn.Embedding(50, 4), nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.look_up(x).mean(dim=1))

def make_words(input_shape, classes):
    return Words(classes)
"""


@pytest.fixture
def cities(digits_scenario, tmp_path):
    (tmp_path / "cities.py").write_text(CITIES)
    data = {"dataset": "cities:visits", "clients": 3, "transfer": {"size": 10}}
    data["partition"] = {"scheme": "natural", "min_samples": 2}
    tables = digits_scenario | {"rounds": 1, "data": data, "plugin_path": [str(tmp_path)]}
    return tables | {"clients": [{"model": "mlp", "args": {"hidden": [4]}}]}


def test_owner_names_stay_with_clients(cities, tmp_path):
    told = [line for line in check_plan(parse_plan(cities)) if "clients are" in line]
    run = fedkd.run(cities, out=tmp_path / "run").folder
    owners = json.loads((run / "clients.json").read_text())["owners"]
    assert (
        owners == sorted(owners) and set(owners) < {"Rome", "Oslo", "Berlin", "Bonn|*"} and len(owners) == 3
    )
    assert told == [f"{'':<11}clients are {', '.join(owners)}"]
    data = load_federated_data(parse_plan(cities).scenario)
    assert data.owners == tuple(owners)
    assert fedkd.load_client(run, 1).owner == owners[1]
    exported = fedkd.export(run).folder
    described = json.loads((exported / "clients.json").read_text())["clients"]
    assert [described[str(n)]["owner"] for n in range(3)] == owners
    card = (exported / "README.md").read_text()
    assert "| client | owner | model |" in card and "| Bonn|* |" not in card
    page = write_report([run]).read_text()
    assert all(json.dumps(owner)[1:-1] in page for owner in owners)


def test_an_embedding_on_floats_is_refused_with_advice(cities):
    words = cities["data"] | {"dataset": "cities:words", "partition": {"scheme": "iid"}}
    tables = cities | {"data": words, "clients": [{"model": "cities:make_words"}]}
    with pytest.raises(UserError, match=r"embeddings need integers: set data\.normalise = false$"):
        list(check_plan(parse_plan(tables)))
    tables["data"] = words | {"normalise": False}
    assert any(line.startswith("model") for line in check_plan(parse_plan(tables)))


def test_a_share_of_a_missing_gpu_is_refused(cities, monkeypatch):
    tables = cities | {"engine": {"kind": "ray", "gpus_per_actor": 0.5}}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match=r"asks for 0\.5 GPU an actor, but Ray sees no GPU here") as caught:
        list(check_plan(parse_plan(tables)))
    assert caught.value.key == "engine.gpus_per_actor"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert any(line.startswith("engine") for line in check_plan(parse_plan(tables)))
