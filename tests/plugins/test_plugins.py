from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import processes
import pytest

from fedkd import register
from fedkd.cli.main import main
from fedkd.continual.registry import LEARNERS, make_learner
from fedkd.data.federated import load_federated_data
from fedkd.data.registry import DATASETS, PARTITIONS
from fedkd.errors import UserError
from fedkd.fusion.registry import STRATEGIES, make_strategy
from fedkd.models.build import build_model
from fedkd.models.registry import MODELS
from fedkd.plan.load import load_scenario
from fedkd.plugins.loading import Registry
from fedkd.scenario.dump import dump_toml
from fedkd.training.metrics import METRICS

pytestmark = pytest.mark.usefixtures("no_report")

EVERYTHING = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import nn

from fedkd import register
from fedkd.continual.learner import Learner
from fedkd.fusion.strategy import FusionStrategy, Guidance
from fedkd.training.losses import logits_mse


@register.model("tiny")
def tiny(input_shape, classes, *, width=4):
    size = int(np.prod(input_shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU(), nn.Linear(width, classes))


@register.strategy("first-mover")
@dataclass(frozen=True)
class FirstMover(FusionStrategy):
    name: ClassVar[str] = "first-mover"
    leader: int = 0

    def fuse(self, knowledge, memory):
        return Guidance(targets=knowledge.logits[self.leader].astype(np.float32))

    def loss(self, student_logits, targets):
        return logits_mse(student_logits, targets)


@register.learner("frozen-body")
@dataclass(frozen=True)
class FrozenBody(Learner):
    name: ClassVar[str] = "frozen-body"
    after: int = 1

    def project(self, context, gradients):
        if context.task < self.after:
            return gradients
        return {name: g if "3" in name else g.zero_() for name, g in gradients.items()}


@register.partition("in-turn")
def in_turn(labels, clients, generator, *, offset=0):
    return [np.arange((n + offset) % clients, len(labels), clients) for n in range(clients)]


@register.metric("sureness")
def sureness(probabilities, targets):
    return probabilities.max(axis=1).mean()


@register.dataset("stripes")
def stripes(samples=400):
    y = np.arange(samples) % 2
    x = np.zeros((samples, 1, 4, 4), dtype=np.float32)
    x[y == 0, :, ::2] = 1
    x[y == 1, :, :, ::2] = 1
    return x, y, x[:100], y[:100]
"""

SCENARIO = """
plugins = ["{module}"]
rounds = 1
metrics = ["sureness"]
clients = [{{ model = "tiny", args = {{ width = 5 }} }}]
fusion = {{ strategy = "first-mover", leader = 1 }}
engine = {{ kind = "inline" }}
[data]
dataset = "stripes"
args = {{ samples = 300 }}
clients = 3
partition = {{ scheme = "in-turn", args = {{ offset = 1 }} }}
transfer = {{ source = "holdout", size = 60 }}
"""


@pytest.fixture(autouse=True)
def clean_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    for registry in (STRATEGIES, LEARNERS, MODELS, PARTITIONS, DATASETS, METRICS):
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.fixture
def everything(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A scenario beside a module, named after the test, that registers a part of every kind."""
    module = f"everything_{abs(hash(request.node.name))}"
    (tmp_path / f"{module}.py").write_text(EVERYTHING, encoding="utf-8")
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO.format(module=module), encoding="utf-8")
    return path


def install(folder: Path, package: str, group: str, **entries: str) -> None:
    """Make `folder`, which lies on the search path, look as if `package` were installed there."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))


def test_a_registered_part_is_used_by_name():
    @register.model("by-hand")
    def factory(input_shape, classes):
        return None

    assert MODELS.load("by-hand") is factory
    assert MODELS.names()[-1] == "by-hand" and "by-hand" not in MODELS.builtin
    with pytest.raises(UserError, match="did you mean 'by-hand'"):
        MODELS.check("by-hnad")


def test_a_duplicate_name_is_refused_with_both_owners():
    def mine(input_shape, classes):
        return None

    with pytest.raises(
        UserError, match=r"two models named 'cnn': fedkd.models.zoo.cnn:cnn and .*mine; rename"
    ):
        register.model("cnn")(mine)

    register.model("twice")(mine)
    register.model("twice")(mine)

    def other(input_shape, classes):
        return None

    with pytest.raises(UserError, match=r"two models named 'twice': .*mine and .*other"):
        register.model("twice")(other)
    assert MODELS.load("twice") is mine


@pytest.mark.parametrize("name", ["", "a:b", None, len])
def test_invalid_names_are_refused(name):
    with pytest.raises(UserError, match="must be a string without ':'"):
        register.dataset(name)


def test_a_scenario_uses_parts_of_its_plugins_by_name(everything: Path):
    scenario = load_scenario(everything)
    assert scenario.fusion.model_extra == {"leader": 1}
    assert scenario.plugin_path == [str(everything.parent)]
    data = load_federated_data(scenario)
    assert data.name == "stripes" and data.num_clients == 3 and len(data.transfer_x) == 60
    assert len(data.x) == 240 and data.source_index[: data.test_bounds[0][1]].size == 80
    model = build_model(scenario.clients[0], data.input_shape, data.classes, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 16 * 5 + 5 + 5 * 2 + 2
    assert make_strategy("first-mover", {}).name == "first-mover"


def test_a_resolved_scenario_means_the_same_elsewhere(everything: Path, tmp_path_factory):
    scenario = load_scenario(everything)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy.toml"
    elsewhere.write_text(dump_toml(scenario), encoding="utf-8")
    assert load_scenario(elsewhere) == scenario


def test_plugins_are_imported_in_another_process(everything: Path):
    scenario = load_scenario(everything)
    code = (
        "import sys; from fedkd.scenario.schema import Scenario; "
        "from fedkd.data.federated import load_federated_data; "
        "data = load_federated_data(Scenario.model_validate_json(sys.stdin.read())); print(data.x.sum())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=scenario.model_dump_json(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(float(load_federated_data(scenario).x.sum()), rel=1e-6)


def test_a_scenario_with_plugins_runs(everything: Path, tmp_path: Path):
    import fedkd

    result = fedkd.run(everything, out=tmp_path / "out")
    assert result.summary["status"] == "done" and result.summary["final"]["bytes_up"] > 0
    assert result.summary["final"]["sureness_local"]["n"] == 3


def test_a_plug_in_learner_learns_a_stream(everything: Path, tmp_path: Path):
    import fedkd

    stream = ["continual.learner=frozen-body", "continual.after=0", "continual.tasks.kind=permuted"]
    everything.write_text(everything.read_text().replace("rounds = 1\n", ""), encoding="utf-8")
    scenario = load_scenario(everything, [*stream, "continual.tasks.count=2", 'metrics=["accuracy"]'])
    assert scenario.continual is not None and scenario.continual.model_extra == {"after": 0}
    assert make_learner("frozen-body", {}).name == "frozen-body" and "frozen-body" in LEARNERS.names()
    summary = fedkd.run(scenario, out=tmp_path / "out").summary
    assert summary["continual"]["tasks"] == 2 and summary["continual"]["stored_bytes"]["mean"] == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "plugins.0: cannot import 'unimportable': No module named 'unimportable'"),
        ("1 / 0", "plugins.0: importing 'unimportable' raised ZeroDivisionError"),
        ("from fedkd import register\nregister.model('mlp')(print)", "plugins.0: two models named 'mlp'"),
    ],
)
def test_plugins_that_cannot_be_imported_are_reported(tmp_path: Path, content: str | None, words: str):
    if content is not None:
        (tmp_path / "unimportable.py").write_text(content)
    path = tmp_path / "scenario.toml"
    path.write_text("plugins = ['unimportable']")
    with pytest.raises(UserError) as caught:
        load_scenario(path)
    assert words in str(caught.value)


def test_an_installed_package_declares_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "entry_point_part.py").write_text("def large(input_shape, classes): ...")
    install(tmp_path, "zoo-of-mine", "fedkd.models", large="entry_point_part:large", gone="no_such_mod:x")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry("model", {"cnn": "fedkd.models.zoo.cnn:cnn"}, "fedkd.models")
    assert registry.names() == ["cnn", "gone", "large"]
    assert registry.load("large").__name__ == "large"
    with pytest.raises(UserError, match="cannot import 'no_such_mod'"):
        registry.load("gone")


def test_a_duplicate_declared_name_is_refused_with_both_owners(tmp_path: Path, monkeypatch):
    install(tmp_path, "first", "fedkd.models", cnn="their_cnn:cnn", wide="a:wide")
    install(tmp_path, "second", "fedkd.models", wide="b:wide")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry(
        "model", {"cnn": "fedkd.models.zoo.cnn:cnn", "mlp": "fedkd.models.zoo.mlp:mlp"}, "fedkd.models"
    )
    assert registry.load("mlp").__name__ == "mlp"
    with pytest.raises(UserError, match=r"'cnn': fedkd.models.zoo.cnn:cnn and their_cnn:cnn of the"):
        registry.load("cnn")
    with pytest.raises(UserError, match=r"'wide': a:wide of the package 'first' and b:wide of the package"):
        registry.check("wide")


def test_fedkd_list_shows_an_installed_learner(tmp_path: Path):
    (tmp_path / "listed_learner.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from fedkd.continual.learner import Learner, LearnerTraits\n"
        "@dataclass(frozen=True)\n"
        "class Sleepy(Learner):\n"
        '    """Learn nothing in the afternoon."""\n'
        '    name: ClassVar[str] = "sleepy"\n'
        "    traits: ClassVar[LearnerTraits] = LearnerTraits(isolates=True)\n"
        "    hours: int = 3\n"
    )
    install(tmp_path, "learners-of-mine", "fedkd.learners", sleepy="listed_learner:Sleepy", gone="no_mod:x")
    status, listed, error = processes.run(["list", "learners", "sleepy"], tmp_path, path=[tmp_path])
    assert status == 0, error
    lines = listed.splitlines()
    assert lines[0].startswith("sleepy") and "Learn nothing in the afternoon." in lines[0]
    assert "gives each task its own weights" in lines[1] and "hours = 3 (int)" in lines[2]
    _, listed, _ = processes.run(["list", "learners"], tmp_path, path=[tmp_path])
    assert "  sleepy " in listed and re.search(r"^  gone .*cannot import 'no_mod'", listed, re.MULTILINE)


def test_fedkd_list_shows_installed_parts_and_survives_broken_ones(tmp_path: Path):
    (tmp_path / "listed_part.py").write_text(
        'def large(input_shape, classes, *, depth, width=8, **rest):\n    """Return something large."""\n'
    )
    install(tmp_path, "zoo-of-mine", "fedkd.models", large="listed_part:large", gone="no_such_mod:x")
    status, listed, error = processes.run(["list", "models"], tmp_path, path=[tmp_path])
    assert status == 0, error
    lines = listed.splitlines()
    assert any(line.startswith("large") and "Something large." in line for line in lines)
    assert any("args: depth, width = 8" in line and "rest" not in line for line in lines)
    assert any(line.startswith("gone") and "cannot import 'no_such_mod'" in line for line in lines)
    assert any(line.startswith("cnn") for line in lines)


PARTITION = """
import numpy as np
def deal(labels, clients, generator, *, what="well"):
    shards = list(np.array_split(generator.permutation(len(labels)), clients))
    return {
        "well": shards,
        "few": shards[1:],
        "none": None,
        "floats": [shard / 2 for shard in shards],
        "outside": [np.arange(10) + len(labels), *shards[1:]],
        "twice": [shards[0], *shards[:-1]],
        "repeated": [np.repeat(shards[0][:20], 2), *shards[1:]],
        "empty": [shards[0][:0], *shards[1:]],
    }[what]
def error(labels, clients, generator):
    raise KeyError("oops")
nothing = 3
"""


def deal(tmp_path: Path, scheme: str, **args: str):
    (tmp_path / "partition_of_mine.py").write_text(PARTITION)
    path = tmp_path / "scenario.toml"
    pairs = ", ".join(f"{key} = '{value}'" for key, value in args.items())
    path.write_text(
        f"[data]\nclients = 4\npartition = {{ scheme = '{scheme}', args = {{ {pairs} }} }}\n"
        "transfer = { size = 200 }\n"
    )
    return load_federated_data(load_scenario(path))


def test_a_plug_in_function_partitions_the_samples(tmp_path: Path):
    first, again = (deal(tmp_path, "partition_of_mine:deal") for _ in range(2))
    assert np.array_equal(first.source_index, again.source_index)
    assert len(np.unique(first.source_index)) == len(first.x) == 1438 - 200


@pytest.mark.parametrize(
    ("scheme", "args", "key", "words"),
    [
        ("deal", {"what": "few"}, "scheme", "must return a list of 4 index arrays, got 3 entries"),
        ("deal", {"what": "none"}, "scheme", "must return a list of 4 index arrays, got NoneType"),
        ("deal", {"what": "floats"}, "scheme", "must return integer indices"),
        ("deal", {"what": "outside"}, "scheme", "gave client 0 indices in 1238..1247, must be in 0..1237"),
        ("deal", {"what": "twice"}, "scheme", "gave client 1 a sample twice, or a sample of another client"),
        ("deal", {"what": "repeated"}, "scheme", "gave client 0 a sample twice"),
        ("deal", {"what": "empty"}, "scheme", "gave client 0 0 samples, must be ≥ 10 (min_samples)"),
        ("deal", {"whta": "few"}, "args", "got an unexpected keyword argument 'whta'"),
        ("error", {}, "scheme", "raised KeyError: 'oops'"),
        ("nothing", {}, "scheme", "is not callable"),
        ("absent", {}, "scheme", "module 'partition_of_mine' has no 'absent'"),
    ],
)
def test_invalid_partitions_are_refused(tmp_path: Path, scheme: str, args: dict, key: str, words: str):
    with pytest.raises(UserError) as caught:
        deal(tmp_path, f"partition_of_mine:{scheme}", **args)
    assert caught.value.key == f"data.partition.{key}" and words in str(caught.value)


@pytest.mark.parametrize(
    ("partition", "words"),
    [
        ("scheme = 'dirichelt'", "scheme: no partition scheme named 'dirichelt'; did you mean 'dirichlet'?"),
        (
            "scheme = 'zzz'",
            "allowed: circle, dirichlet, dirichlet-per-client, file, iid, natural, quantity, shards",
        ),
        ("args = { a = 1 }", "args: must be left out: it applies only to a plug-in scheme"),
        ("scheme = 'a:b', samples_per_client = 50", "samples_per_client: must be left out"),
    ],
)
def test_partition_errors_are_reported_before_data_loads(tmp_path: Path, partition: str, words: str):
    path = tmp_path / "scenario.toml"
    path.write_text(f"data.partition = {{ {partition} }}")
    with pytest.raises(UserError) as caught:
        load_scenario(path)
    assert words in str(caught.value)


LEAVES = {
    "sys.exit": "import sys; sys.exit(0)",
    "sys.exit with words": "import sys; sys.exit('goodbye')",
    "os._exit": "import os; os._exit(0)",
    "a BaseException": "raise type('Away', (BaseException,), {})('gone')",
    "a GeneratorExit": "raise GeneratorExit('Away: gone')",
    "a KeyboardInterrupt of its own": "raise type('Away', (KeyboardInterrupt,), {})('gone')",
}
STRATEGY = (
    "from dataclasses import dataclass\nfrom fedkd.fusion.distillation.fedmd import FedMD\n"
    "@dataclass(frozen=True)\nclass Mine(FedMD):\n  def {}:\n    NOW\n"
)
LEARNER = (
    "from dataclasses import dataclass\nfrom typing import ClassVar\n"
    "from fedkd.continual.learner import Learner\n"
    "@dataclass(frozen=True)\nclass Mine(Learner):\n  name: ClassVar[str] = 'mine'\n  def {}:\n    NOW\n"
)
LEARNED = [
    "fusion={strategy='fedmd'}",
    "continual={learner='leaves:Mine',rounds_per_task=1,tasks={kind='split',count=2}}",
    "data.partition.samples_per_client=40",
    "data.transfer.size=20",
]
PLACES = {
    "import": ("NOW\n", ["clients.0.model=leaves:model"]),
    "model": ("def model(input_shape, classes):\n    NOW\n", ["clients.0.model=leaves:model"]),
    "data": ("def load():\n    NOW\n", ["data.dataset=leaves:load"]),
    "partition": (
        "def deal(labels, clients, generator):\n    NOW\n",
        ["data.partition={scheme='leaves:deal'}"],
    ),
    "strategy": (STRATEGY.format("__post_init__(self)"), ["fusion={strategy='leaves:Mine'}"]),
    "request": (STRATEGY.format("request(self, *arguments)"), ["fusion={strategy='leaves:Mine'}"]),
    "fuse": (STRATEGY.format("fuse(self, knowledge, memory)"), ["fusion={strategy='leaves:Mine'}"]),
    "loss": (STRATEGY.format("loss(self, student_logits, targets)"), ["fusion={strategy='leaves:Mine'}"]),
    "learner": (LEARNER.format("__post_init__(self)"), LEARNED),
    "penalty": (LEARNER.format("penalty(self, context, step)"), LEARNED),
}
CALLED_WHILE_RUNNING = {"request": 2, "fuse": 2, "loss": 2, "penalty": 0}
"""What is called in a round, with the status of a check: some of it is tried there."""


@pytest.mark.parametrize(
    ("place", "way"),
    [*product(PLACES, ["sys.exit"]), *product(["import", "loss"], list(LEAVES)[1:]), ("fuse", "os._exit")],
    ids="-".join,
)
def test_a_plug_in_cannot_end_the_program(place, way, digits_toml, tmp_path, capsys):
    text, changes = PLACES[place]
    (tmp_path / "leaves.py").write_text(text.replace("NOW", LEAVES[way]))
    sys.modules.pop("leaves", None)
    for verb in ("check", "run"):
        words = [verb, str(digits_toml), "--set", *changes]
        words += ["--out", str(tmp_path / f"{place}"), "--quiet"] * (verb == "run")
        status, said = main(words), capsys.readouterr().err
        checked = CALLED_WHILE_RUNNING.get(place, 2)
        assert status == (3 if verb == "run" and place in CALLED_WHILE_RUNNING else checked), said
        assert said.count("\n") == (status != 0) and "Traceback" not in said
        assert status == 0 or ("sys.exit" in said or "os._exit(0)" in said or "Away: gone" in said)
        assert "internal error" not in said


ON_ACTORS = {
    "import": "import os\nif os.getpid() != HOME:\n    NOW\nfrom fedkd.models.zoo.mlp import mlp as model\n",
    "model": (
        "import os\nfrom fedkd.models.zoo.mlp import mlp\n"
        "def model(input_shape, classes):\n  if os.getpid() != HOME:\n    NOW\n"
        "  return mlp(input_shape, classes)\n"
    ),
    "fit": (
        "import numpy as np\nclass model:\n  def fit(self, x, y):\n    NOW\n"
        "  def predict_proba(self, x):\n    return np.full((len(x), 10), 0.1)\n"
    ),
}
"""What goes wrong in a process of Ray alone."""


@pytest.mark.alone
@pytest.mark.parametrize(
    ("place", "way"),
    zip(ON_ACTORS, ["sys.exit", "a KeyboardInterrupt of its own", "sys.exit"], strict=True),
)
def test_a_plug_in_on_an_actor_cannot_end_the_program(place, way, digits_toml, tmp_path, capsys, ray_session):
    text = ON_ACTORS[place].replace("HOME", str(os.getpid())).replace("NOW", LEAVES[way])
    (tmp_path / "leaves.py").write_text(text)
    sys.modules.pop("leaves", None)
    words = ["run", str(digits_toml), "--out", str(tmp_path / "out"), "--quiet", "--engine", "ray"]
    status = main([*words, "--set", "clients.0.model=leaves:model", "engine.actors=1"])
    said = capsys.readouterr().err
    assert status == (3 if place == "fit" else 2)
    assert said.count("\n") == 1 and "Traceback" not in said and "internal error" not in said
    assert "sys.exit(0)" in said or "Away: gone" in said
