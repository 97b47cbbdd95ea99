"""User errors end with the documented exit status and one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest

from fedkd.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]

PLUGIN = '''
import os
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from fedkd.continual.learner import Learner
from fedkd.fusion.strategy import FusionStrategy, Guidance


class Flat(nn.Module):
    """A linear classifier; `break_in` says what goes wrong while it trains."""

    def __init__(self, input_shape, classes, break_in=None):
        super().__init__()
        self.head = nn.Linear(int(np.prod(input_shape)), classes)
        self.break_in = break_in

    def forward(self, x):
        if self.training and self.break_in == "forward":
            raise RuntimeError("the tap is dry\\nand this is a second line")
        if self.training and self.break_in == "process":
            os._exit(7)
        return self.head(x.flatten(1))


def raising(input_shape, classes):
    raise ValueError("no such width")


def wide(input_shape, classes):
    return Flat(input_shape, classes + 1)


def number(input_shape, classes):
    return 3


class NotAStrategy:
    name = "not-a-strategy"


@dataclass(frozen=True)
class Raising(FusionStrategy):
    name: ClassVar[str] = "raising"

    def fuse(self, knowledge, memory):
        raise ZeroDivisionError("nothing to divide by")

    def loss(self, student_logits, targets):
        return student_logits.sum() * 0


@dataclass(frozen=True)
class WrongShape(FusionStrategy):
    name: ClassVar[str] = "wrong-shape"

    def fuse(self, knowledge, memory):
        return Guidance(targets=knowledge.logits[:, :-1])

    def loss(self, student_logits, targets):
        return student_logits.sum() * 0


@dataclass(frozen=True)
class NoGuidance(FusionStrategy):
    name: ClassVar[str] = "no-guidance"

    def fuse(self, knowledge, memory):
        return knowledge.logits

    def loss(self, student_logits, targets):
        return student_logits.sum() * 0


def ragged(labels, clients, generator):
    return [[1, [2]]] * clients


def shapeless(labels, clients, generator):
    return np.array(clients)


@dataclass(frozen=True)
class Balking(Learner):
    name: ClassVar[str] = "balking"

    def prepare(self, context):
        raise ValueError("not this one")


@dataclass(frozen=True)
class Babbling(Learner):
    name: ClassVar[str] = "babbling"

    def report(self, context):
        return {"held": "much"}


class Shy:
    def __getattr__(self, name):
        raise RuntimeError("do not look at me")


def shy(input_shape, classes):
    return Shy()


@dataclass(frozen=True)
class Telling(Raising):
    name: ClassVar[str] = "telling"

    def upload(self, client):
        return "text"


@dataclass(frozen=True)
class Asking(Raising):
    name: ClassVar[str] = "asking"

    def request(self, transfer_size, memory, generator):
        return [3, 1]


@dataclass(frozen=True)
class Halves(Raising):
    name: ClassVar[str] = "halves"

    def fuse(self, knowledge, memory):
        raise ValueError("half a pair \\udcff of surrogates")


class Endless:
    def fit(self, X, y):
        return self

    def predict_proba(self, X):
        return np.full((len(X), 10), np.inf)


def endless(input_shape, classes):
    return Endless()


@dataclass(frozen=True)
class BadLoss(FusionStrategy):
    name: ClassVar[str] = "bad-loss"

    def fuse(self, knowledge, memory):
        return Guidance(targets=knowledge.logits)

    def loss(self, student_logits, targets):
        return student_logits - targets
'''


@dataclass(frozen=True)
class Case:
    """One mistake.

    Args:
        words: Words after ``fedkd``; ``FILE`` is a scenario that is right, in a folder with the plug-ins.
        expected: Texts that the error line has to hold.
        status: Exit status.
    """

    words: str
    expected: tuple[str, ...]
    status: int = 2


def run_set(*overrides: str) -> str:
    return " ".join(["run FILE --quiet --out OUT --set", *overrides])


CASES = {
    # Words and files
    "no such file": Case("run nowhere.toml", ("nowhere.toml: no such file",)),
    "a folder": Case("run FOLDER", ("FOLDER", "folder")),
    "toml syntax": Case("run SYNTAX", ("SYNTAX", "line 3")),
    "not text": Case("run BINARY", ("BINARY", "UTF-8")),
    "set syntax": Case(run_set("rounds"), ("--set", "'rounds'", "key=value")),
    "set broken toml": Case(run_set("data.partition={scheme="), ("--set", "data.partition", "TOML")),
    "set beside a list": Case(run_set("clients.model=mlp"), ("clients is a list", "clients.0")),
    "out holds a run": Case("run FILE --out TAKEN", ("--out", "TAKEN", "fedkd resume")),
    "out is a file": Case("run FILE --out FILE", ("--out", "FILE")),
    "resume of no run": Case("resume FOLDER", ("FOLDER", "not a run folder", "scenario.toml")),
    "resume of nothing": Case("resume nowhere", ("nowhere", "not a run folder")),
    # Types and keys
    "word for a number": Case(run_set("training.lr=fast"), ("FILE: training.lr", "a number", "'fast'")),
    "number for a table": Case(run_set("training=3"), ("FILE: training", "a table", "got 3")),
    "string for an integer": Case(run_set('rounds="3"'), ("FILE: rounds", "an integer", "'3'")),
    "fraction for an integer": Case(run_set("data.clients=2.5"), ("FILE: data.clients", "an integer", "2.5")),
    "infinite": Case(run_set("training.lr=inf"), ("FILE: training.lr", "finite", "inf")),
    "empty clients": Case(run_set("clients=[]"), ("FILE: clients", "at least 1")),
    "unknown key": Case(run_set("data.partition.alhpa=1"), ("data.partition.alhpa", "'alpha'")),
    "unknown scheme": Case(run_set("data.partition.scheme=dirichelt"), ("partition.scheme", "'dirichlet'")),
    "continual": Case(
        run_set("rounds=5", "continual.learner=ewwc"), ("FILE: continual.learner", "no learner named 'ewwc'")
    ),
    # Data
    "too many samples": Case(
        run_set("data.partition.samples_per_client=5000"),
        ("FILE: data.partition.samples_per_client", "at most"),
    ),
    "min_samples too large": Case(
        run_set("data.partition={scheme='dirichlet',min_samples=2000}"),
        ("FILE: data.partition.min_samples", "2000", "private samples"),
    ),
    "too many shards": Case(
        run_set("data.partition={scheme='shards',samples_per_client=20,shards_per_client=30}"),
        ("FILE: data.partition.shards_per_client", "≤ 20", "30"),
    ),
    "transfer set too large": Case(run_set("data.transfer.size=5000"), ("FILE: data.transfer.size", "5000")),
    "test set too large": Case(run_set("data.test_size=99999"), ("FILE: data.test_size", "99999")),
    "npz without path": Case(run_set("data.dataset=npz"), ("FILE: data.args.path", "npz")),
    "npz nowhere": Case(
        run_set("data.dataset=npz", "data.args.path=gone.npz"),
        ("FILE: data.args.path", "'gone.npz'", "looked"),
    ),
    "npz with objects": Case(
        run_set("data.dataset=npz", "data.args.path=objects.npz"),
        ("FILE: data.args", "objects.npz", "object"),
    ),
    "no images": Case(
        run_set("data.dataset=image-folder", "data.args.path=empty"), ("FILE: data.args.path", "empty")
    ),
    # Models
    "model nowhere": Case(run_set("clients.0.model=gone:Net"), ("FILE: clients.0.model", "gone")),
    "model not in module": Case(run_set("clients.0.model=parts:Flta"), ("FILE: clients.0.model", "'Flat'")),
    "model raises": Case(run_set("clients.0.model=parts:raising"), ("clients.0.model", "no such width")),
    "model of wrong shape": Case(
        run_set("clients.0.model=parts:wide"), ("clients.0.model", "[2, 11]", "[2, 10]")
    ),
    "model is no module": Case(
        run_set("clients.0.model=parts:number"), ("clients.0.model", "torch.nn.Module")
    ),
    "plug-in syntax": Case(run_set("clients.0.model=torn:Net"), ("clients.0.model", "torn", "SyntaxError")),
    # Strategies
    "strategy syntax": Case(run_set("fusion.strategy=torn:Mine"), ("fusion.strategy", "torn", "SyntaxError")),
    "not a strategy": Case(
        run_set("fusion.strategy=parts:NotAStrategy"), ("fusion.strategy", "FusionStrategy")
    ),
    "flower's unknown": Case(run_set("fusion.strategy=flwr:FedAvgg"), ("fusion.strategy", "'FedAvg'")),
    "flower's key": Case(run_set("fusion.strategy=flwr:FedAdam", "fusion.etta=1"), ("fusion.etta", "'eta'")),
    "weights of two architectures": Case(
        run_set("fusion.strategy=flwr:FedAvg", "clients.1.model=lenet"),
        ("FILE: clients", "one architecture", "lenet"),
    ),
    "model larger than memory": Case(
        run_set("clients.0={model='mlp',args={hidden=[90000,90000]}}"),
        ("FILE: clients.0.model", "asks for 32.4 GB or more", "during training"),
    ),
    # What no machine holds, and no float
    "noise for billions": Case(
        run_set("data.transfer={source='noise',size=10000000000}"),
        ("FILE: data.transfer.size", "10,000,000,000 samples of noise take 2,560.0 GB"),
    ),
    "noise beyond floats": Case(run_set("heterogeneity.noise=1e308"), ("heterogeneity.noise", "≤ 1e+06")),
    "no temperature": Case(run_set("fusion.temperature=1e-308"), ("fusion.temperature", "≥ 1e-06")),
    "a million tasks": Case(
        run_set("continual={tasks={kind='permuted',count=1000000}}"), ("continual.tasks.count", "≤ 10000")
    ),
    "more rounds than can be": Case(
        "check BARE --set continual={rounds_per_task=1000000000}", ("rounds_per_task", "more than 1000000000")
    ),
    "a partition of brackets": Case(
        run_set("data.partition={scheme='file',path='brackets.json'}"),
        ("FILE: data.partition.path", "brackets.json is not valid JSON: lists or tables thousands deep"),
    ),
    # What other parts of one's own hand over
    "partition of lists in lists": Case(
        run_set("data.partition={scheme='parts:ragged'}"),
        ("FILE: data.partition.scheme", "returned no indices for client 0"),
    ),
    "partition without a shape": Case(
        run_set("data.partition={scheme='parts:shapeless'}"),
        ("FILE: data.partition.scheme", "must return a list of 4 index arrays, got ndarray"),
    ),
    "a learner that balks": Case(
        "check BARE --set continual={learner='parts:Balking'}",
        (
            "BARE: continual.learner",
            "'balking' raised ValueError: not this one in preparing a model",
        ),
    ),
    "a learner that babbles": Case(
        "run BARE --quiet --out OUT --set continual={learner='parts:Babbling'}",
        ("client 0, round 1", "`report` of learner 'babbling' returned a dict; must be a dict of numbers"),
        3,
    ),
    "a model not to be looked at": Case(
        run_set("clients.0.model=parts:shy"),
        ("FILE: clients.0.model", "made a Shy, which raised RuntimeError: do not look at me"),
    ),
    # What strategies hand over, found out while a round is tried
    "an upload of text": Case(
        "check FILE --set fusion.strategy=parts:Telling",
        ("FILE: fusion.strategy", "'parts:Telling'", "is a str; must be a dict of NumPy arrays by name"),
    ),
    "guidance that is none, tried": Case(
        "check FILE --set fusion.strategy=parts:NoGuidance",
        ("FILE: fusion.strategy", "'parts:NoGuidance'", "fuse returned a ndarray; must be a Guidance"),
    ),
    # While it runs
    "an estimator without end": Case(
        run_set("clients.0.model=parts:endless"),
        ("client 0, round 1: `predict_proba` of Endless returned inf; must be finite numbers",),
        3,
    ),
    "a request of another kind": Case(
        run_set("fusion.strategy=parts:Asking"), ("round 1", "parts:Asking", "request returned a list"), 3
    ),
    "half a surrogate pair": Case(
        run_set("fusion.strategy=parts:Halves"), ("round 1", "parts:Halves", "half a pair \\udcff of"), 3
    ),
    "fuse raises": Case(
        run_set("fusion.strategy=parts:Raising"), ("round 1", "parts:Raising", "ZeroDivisionError"), 3
    ),
    "guidance of wrong shape": Case(
        run_set("fusion.strategy=parts:WrongShape"), ("round 1", "[4, 29, 10]", "[4, 30, 10]", "[30, 10]"), 3
    ),
    "guidance is none": Case(
        run_set("fusion.strategy=parts:NoGuidance"), ("round 1", "Guidance", "ndarray"), 3
    ),
    "loss is no scalar": Case(run_set("fusion.strategy=parts:BadLoss"), ("client 0", "round 1", "scalar"), 3),
    "diverges": Case(
        run_set("training={optimizer='sgd',lr=1e30}"), ("client 0", "round 1", "lower training.lr"), 3
    ),
    "forward raises": Case(
        run_set("clients.0={model='parts:Flat',args={break_in='forward'}}"),
        ("client 0", "round 1", "RuntimeError: the tap is dry"),
        3,
    ),
}


@pytest.fixture
def places(tmp_path: Path, digits_scenario: dict[str, Any]) -> dict[str, str]:
    """A good scenario with plug-ins beside it, and some files that are not good."""
    import tomli_w

    data = {**digits_scenario["data"], "transfer": {"source": "holdout", "size": 30}, "test_size": 50}
    data["partition"] = {"scheme": "dirichlet", "alpha": 1.0, "samples_per_client": 40}
    home = tmp_path / "home"
    home.mkdir()
    (home / "right.toml").write_text(tomli_w.dumps({**digits_scenario, "rounds": 1, "data": data}))
    (home / "parts.py").write_text(PLUGIN)
    (home / "brackets.json").write_text("[" * 100_000)
    bare = {name: table for name, table in digits_scenario.items() if name != "rounds"}
    few = {**data, "partition": {**data["partition"], "samples_per_client": 20}}
    (home / "bare.toml").write_text(tomli_w.dumps({**bare, "data": few}))
    (home / "torn.py").write_text("def broken(:\n")
    (home / "empty").mkdir()
    np.savez(home / "objects.npz", **{name: np.array([{}, {}]) for name in NPZ_NAMES}, allow_pickle=True)
    (home / "syntax.toml").write_text('name = "x"\n\nrounds = = 3\n')
    (home / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (home / "taken").mkdir()
    (home / "taken" / "scenario.toml").write_text("rounds = 1\n")
    names = {
        "FILE": "right.toml",
        "BARE": "bare.toml",
        "FOLDER": "empty",
        "SYNTAX": "syntax.toml",
        "BINARY": "binary.toml",
    }
    paths = {word: str(home / name) for word, name in names.items()}
    return paths | {"TAKEN": str(home / "taken"), "OUT": str(tmp_path / "out")}


NPZ_NAMES = ("train_x", "train_y", "test_x", "test_y")


@pytest.fixture(autouse=True)
def fresh_plugins(monkeypatch):
    """Forget the plug-ins of other tests: each test writes its own files."""
    for name in ("parts", "torn"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("parts", "torn"):
        sys.modules.pop(name, None)


def spell(text: str, places: dict[str, str]) -> str:
    """Put the paths of `places` into a text."""
    return re.sub("|".join(rf"\b{word}\b" for word in places), lambda found: places[found.group()], text)


def assert_one_line(error: str) -> None:
    assert error.startswith("error: ") and error.endswith("\n"), error
    assert error.count("\n") == 1, error
    assert "Traceback" not in error and "internal error" not in error, error


@pytest.mark.parametrize("name", CASES)
def test_malformed_input_is_refused_in_one_line(name, places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    case = CASES[name]
    status = main([spell(word, places) for word in case.words.split()])
    error = capsys.readouterr().err
    print(f"[{name}] {status} {error}")
    assert_one_line(error)
    assert status == case.status, error
    for text in case.expected:
        assert spell(text, places) in error
    out = Path(places["OUT"])
    assert out.exists() == (case.status == 3), "a run that cannot start leaves no folder behind"
    if case.status == 3:
        assert str(out / "error.txt") in error
        assert "Traceback" in (out / "error.txt").read_text()


# On Ray and without a network ---------------------------------------------------------------------------


def run_here(capsys, *words: object) -> tuple[int, str]:
    status = main([str(word) for word in words])
    error = capsys.readouterr().err
    assert_one_line(error)
    return status, error


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("engine.actors=64", ("FILE: engine.actors", "asks for 64 actors", "fits 2")),
        ("engine.cpus_per_actor=64", ("FILE: engine.cpus_per_actor", "64 CPUs", "has 2")),
        ("engine.gpus_per_actor=3", ("FILE: engine.gpus_per_actor", "3 GPU", "has 2")),
    ],
)
def test_more_resources_than_the_cluster_has_are_refused(override, expected, places, ray_session, capsys):
    words = ["run", places["FILE"], "--engine", "ray", "--quiet", "--out", places["OUT"], "--set", override]
    status, error = run_here(capsys, *words)
    assert status == 2
    for text in expected:
        assert spell(text, places) in error
    assert not Path(places["OUT"]).exists()


def test_an_unreachable_cluster_is_reported(places, capsys, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    words = ["run", places["FILE"], "--engine", "ray", "--quiet", "--out", places["OUT"]]
    status, error = run_here(capsys, *words, "--set", "engine.address=127.0.0.1:1")
    assert status == 2 and f"{places['FILE']}: engine.address: no Ray cluster at '127.0.0.1:1'" in error


def test_a_wrong_model_on_ray_gives_the_same_line(places, ray_session, capsys):
    words = ["run", places["FILE"], "--engine", "ray", "--quiet", "--out", places["OUT"]]
    status, error = run_here(capsys, *words, "--set", "clients.0.model=parts:wide")
    assert status == 2 and f"{places['FILE']}: clients.0.model: returns [2, 11]" in error


@pytest.mark.alone
def test_a_client_that_raises_on_ray_is_named(places, ray_session, capsys):
    words = ["run", places["FILE"], "--engine", "ray", "--quiet", "--out", places["OUT"], "--set"]
    model = "clients.0={model='parts:Flat',args={break_in='forward'}}"
    status, error = run_here(capsys, *words, model, "engine.actors=1")
    assert status == 3
    assert "client 0, round 1: RuntimeError: the tap is dry" in error
    kept = Path(places["OUT"]) / "error.txt"
    assert str(kept) in error and not (kept.parent / "summary.json").exists()
    assert "Traceback (most recent call last)" in kept.read_text() and "parts.py" in kept.read_text()


@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_missing_data_set_is_reported_with_the_files_to_add(verb, places, tmp_path):
    # A proxy that refuses connections: without a network, whatever this machine has.
    nowhere = "http://127.0.0.1:9"
    environment = {
        "FEDKD_DATA": str(tmp_path / "data"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "no_proxy": "",
    }
    words = [verb, places["FILE"], "--set", "data.dataset=mnist"]
    status, _, error = processes.run(words, tmp_path, environment=environment)
    assert status == 2
    assert_one_line(error)
    assert f"{places['FILE']}: data.root: cannot download train-images" in error
    assert "put train-images-idx3-ubyte.gz, " in error and str(tmp_path / "data" / "mnist") in error


@pytest.mark.alone
def test_a_local_ray_prints_nothing(places):
    """A GPU where there is none, and a client that takes its process with it: a line each, fedkd's own."""
    code = f"""
from fedkd.cli.main import main
from fedkd.engine.ray.cluster import connect_ray
from fedkd.scenario.schema import Engine
connect_ray(Engine())
words = ["run", {places["FILE"]!r}, "--engine", "ray", "--quiet", "--out", {places["OUT"]!r}]
words += ["--set", "engine.actors=1"]
assert main([*words, "engine.gpus_per_actor=0.5"]) == 2
assert main([*words, "clients.0={{model='parts:Flat',args={{break_in='process'}}}}"]) == 3
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    no_gpu, died = done.stderr.splitlines(keepends=True)
    assert_one_line(no_gpu)
    assert f"{places['FILE']}: engine.gpus_per_actor: asks for 0.5 GPU an actor" in no_gpu
    assert_one_line(died)
    assert "client 0, round 1: its Ray actor died" in died and f"fedkd resume {places['OUT']}" in died
    assert "as it did before the run went back to its beginning" in died
    assert done.stdout == ""


def test_cuda_without_a_gpu_is_refused(places, tmp_path):
    words = ["run", places["FILE"], "--engine", "inline", "--quiet", "--out", places["OUT"]]
    words += ["--set", "engine.device=cuda"]
    status, _, error = processes.run(words, tmp_path, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert status == 2
    assert_one_line(error)
    assert f"{places['FILE']}: engine.device: " in error
