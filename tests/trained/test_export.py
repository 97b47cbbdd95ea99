"""Exports load without fedkd."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import fedkd
from fedkd.cli.main import main
from fedkd.errors import UserError
from fedkd.models.registry import MODELS
from fedkd.trained.network import network_source

pytestmark = pytest.mark.usefixtures("no_report")

SAMPLES = np.random.default_rng(0).uniform(0, 16, (20, 1, 8, 8))


@pytest.fixture(scope="module")
def run(make_digits_scenario, tmp_path_factory):
    tables = make_digits_scenario() | {
        "rounds": 1,
        "clients": [
            {"model": "lenet"},
            {"model": "mlp", "args": {"hidden": [10]}},
            {"model": "random-forest", "args": {"trees": 3}},
            {"model": "resnet8", "args": {"norm": "batch"}},
        ],
    }
    return fedkd.run(tables, out=tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def exported(run):
    return fedkd.export(run.folder)


def loader(folder):
    return runpy.run_path(str(folder / "load.py"))["load"]


def test_folder(run, exported):
    assert exported.folder == run.folder / "export"
    assert exported.clients == (0, 1, 3) and exported.without_network == ()
    assert exported.left_out.keys() == {2} and "RandomForestClassifier" in exported.left_out[2]
    assert {path.name for path in exported.folder.iterdir()} == {
        *("README.md", "load.py", "networks.py", "clients.json"),
        *(f"client-0000{index}.safetensors" for index in exported.clients),
    }
    with safe_open(exported.folder / "client-00003.safetensors", "np") as file:
        assert file.metadata()["architecture"] == "resnet8" and "head.weight" in file.keys()  # noqa: SIM118


@pytest.mark.parametrize("index", [0, 1, 3])
def test_the_exported_loader_predicts_like_the_client(run, exported, index):
    loaded, client = loader(exported.folder)(index), fedkd.load_client(run.folder, index)
    assert tuple(loaded.classes) == client.classes and not loaded.model.training
    np.testing.assert_allclose(loaded.logits(SAMPLES), client.logits(SAMPLES), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(loaded.predict(SAMPLES), client.predict(SAMPLES))


ALONE = """
import sys
for name in ("fedkd", "flwr", "ray", "pydantic"):
    sys.modules[name] = None
from load import load
import numpy as np
print(load(0).predict(np.zeros((2, 1, 8, 8), np.uint8)).shape)
"""


def test_the_exported_loader_does_not_need_fedkd(exported):
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=exported.folder, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("(2,)\n", "")


def test_the_model_card_describes_the_model(run, exported):
    card = (exported.folder / "README.md").read_text()
    final = [
        row["value"]
        for row in run.metrics()
        if (row["client"], row["split"], row["metric"]) == (3, "global", "accuracy")
    ]
    for told in (
        f"{100 * final[-1]:.1f} %",
        "| 3 | resnet8 |",
        "client-00003.safetensors",
        "strategy `knfu`",
        "samples of 1×8×8, classes 0, 1, 2",
        "Client 2 was not exported: its model is a RandomForestClassifier",
        'strategy = "knfu"',
    ):
        assert told in card


def test_incomplete_metric_rows_give_one_line(run, tmp_path, capsys):
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    rows = (copy / "metrics.jsonl").read_text().splitlines()
    damaged = {key: value for key, value in json.loads(rows[1]).items() if key != "client"}
    (copy / "metrics.jsonl").write_text("\n".join([rows[0], json.dumps(damaged), *rows[2:]]) + "\n")
    assert main(["export", str(copy)]) == 2
    told = f"error: {copy / 'metrics.jsonl'}: line 2 is not a row of metrics: it lacks 'client'\n"
    assert capsys.readouterr().err == told


def test_a_repeated_export_replaces_only_its_own_folder(run, exported, tmp_path, capsys):
    (exported.folder / "stale.safetensors").touch()
    assert main(["export", str(run.folder)]) == 0
    assert not (exported.folder / "stale.safetensors").exists()
    assert capsys.readouterr().out.endswith(f"3 clients  {exported.folder}\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert main(["export", str(run.folder), "--out", str(tmp_path / "mine")]) == 2
    assert "--out: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"], "nothing is left half-written"


def test_estimators_cannot_be_exported(make_digits_scenario, tmp_path):
    tables = make_digits_scenario() | {"rounds": 1, "clients": [{"model": "sgd"}], "training": {}}
    result = fedkd.run(tables, out=tmp_path / "run")
    with pytest.raises(UserError, match=r"no client of this run has a network of tensors.*SGDClassifier"):
        fedkd.export(result.folder)


@pytest.mark.parametrize("kind", ["masks", "permutations"])
def test_a_stream_exports_a_model_for_every_task(kind, make_digits_scenario, tmp_path):
    stream = {"learner": "exssnet", "density": 0.5, "mask_lr": 0.01, "tasks": {"kind": "split", "count": 2}}
    if kind == "permutations":
        stream = {"learner": "naive", "head": "domain", "tasks": {"kind": "permuted", "count": 2}}
    tables = make_digits_scenario() | {"fusion": {"strategy": "fedmd"}, "continual": stream}
    tables["data"] |= {"clients": 2, "partition": {"scheme": "iid", "samples_per_client": 40}}
    del tables["rounds"]
    result = fedkd.run(tables, out=tmp_path / "run")
    folder = fedkd.export(result.folder, tmp_path / "out").folder
    files = {
        model["file"] for model in json.loads((folder / "clients.json").read_text())["clients"]["0"]["models"]
    }
    assert len(files) == (2 if kind == "masks" else 1)
    client, load = fedkd.load_client(result.folder, 0), loader(folder)
    for task in (0, 1):
        own, loaded = client.of_task(task), load(0, task=task)
        assert tuple(loaded.classes) == own.classes
        np.testing.assert_allclose(loaded.logits(SAMPLES), own.logits(SAMPLES), rtol=1e-3, atol=1e-4)
    with pytest.raises(KeyError, match=r"has no task 5; it has \[0, 1\]"):
        load(0, task=5)


class Odd(nn.Module):
    """What is no module of torch's, is kept and never used, or is written in functions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 2.0))
        self.unused = nn.Linear(2, 2)
        self.register_buffer("shift", torch.ones(3))
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.gelu(x * self.scale + self.shift).relu() ** 2)


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) if x.sum() > 0 else -self.head(x)


class Drawing(Odd):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.rand(3))


def test_only_reproducible_networks_have_exported_source():
    assert "_put(self, 'shift', torch.empty([3], dtype=torch.float32), buffer=True)" in network_source(
        Odd(), "Network", (3,)
    )
    assert network_source(Undecided(), "Network", (3,)) is None
    assert network_source(Drawing(), "Network", (3,)) is None, "what does not repeat itself is not the same"


def test_untraceable_networks_are_passed_to_the_loader(make_digits_scenario, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n"
        "    def __init__(self, shape, classes):\n        super().__init__()\n"
        "        self.head = torch.nn.Linear(64, classes)\n\n"
        "    def forward(self, x):\n        y = self.head(x.flatten(1))\n        return y if"
        " y.sum() > 1e9 else y + 1\n"
    )
    tables = make_digits_scenario() | {
        "rounds": 1,
        "plugin_path": [str(tmp_path)],
        "clients": [{"model": "mine:Net"}],
        "fusion": {"strategy": "fedmd"},
    }
    result = fedkd.run(tables, out=tmp_path / "run")
    assert main(["export", str(result.folder)]) == 0
    assert "client 1: its network could not be described" in capsys.readouterr().out
    load = loader(result.folder / "export")
    with pytest.raises(ValueError, match="client 1 needs `network`: a mine:Net of yours"):
        load(1)
    import mine

    client = fedkd.load_client(result.folder, 1)
    loaded = load(1, network=mine.Net((1, 8, 8), 10))
    np.testing.assert_allclose(loaded.logits(SAMPLES), client.logits(SAMPLES), rtol=1e-4, atol=1e-4)


def test_named_classes_are_predicted_by_name(make_digits_scenario, tmp_path):
    names = ["<script>alert(1)</script>", "a|b", "[c](http://c)", "d\n# e", "`f`"]
    (tmp_path / "named.py").write_text(
        "import numpy as np\n\n\ndef load():\n"
        "    x = np.random.default_rng(0).normal(size=(400, 6)).astype('float32')\n"
        "    y = np.arange(400) % 5\n"
        f"    return dict(train_x=x, train_y=y, test_x=x[:50], test_y=y[:50], class_names={names!r})\n"
    )
    tables = make_digits_scenario() | {"rounds": 1, "plugin_path": [str(tmp_path)]}
    tables["data"] = {"dataset": "named:load", "clients": 2, "transfer": {"source": "holdout", "size": 20}}
    result = fedkd.run(tables, out=tmp_path / "run")
    folder = fedkd.export(result.folder).folder
    card = (folder / "README.md").read_text()
    told = r"classes \<script\>alert(1)\</script\>, a\|b, \[c\](http://c), d # e, \`f\`; dealt to"
    assert told in card
    samples = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
    places = fedkd.load_client(result.folder, 0).predict(samples)
    assert loader(folder)(0).predict(samples).tolist() == [names[place] for place in places]


@pytest.mark.parametrize("model", ["mlp", "lenet", "cnn", "resnet8"])
def test_zoo_networks_are_traceable(model):
    network = MODELS.load(model)((1, 8, 8), 10)
    assert network_source(network, "Network", (1, 8, 8)) is not None
