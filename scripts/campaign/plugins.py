"""Cases with a plug-in that does at one place what no plug-in should."""

from __future__ import annotations

from typing import Any

import numpy as np

from campaign.base import Bench, stream_tables, tables, write_scenario
from campaign.sandbox import Place

MODULE = "hostile"
SOURCE = """
import os, sys, time, warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from fedkd.continual.learner import Learner
from fedkd.continual.mixins import TaskInference, TaskParameters
from fedkd.fusion.math.probabilities import softmax
from fedkd.fusion.strategy import FusionStrategy, Guidance
from fedkd.training.losses import kd_kl

WHERE, AFTER = {where!r}, {after!r}
calls = 0


class Mute(Exception):
    def __str__(self):
        raise ValueError("I have no words")


class Base(BaseException):
    pass


class Odd:
    def __getattr__(self, name):
        raise RuntimeError("do not look at me")

    def __repr__(self):
        raise RuntimeError("do not look at me")


def deeper(n=0):
    return deeper(n + 1)


def misbehave(usual):
    {what}


def at(place, usual):
    global calls
    if place != WHERE:
        return usual()
    calls += 1
    return usual() if calls <= AFTER else misbehave(usual)


at("import", lambda: None)


class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.head = nn.Linear(int(np.prod(shape)), classes)

    def features(self, x):
        return at("model.features", lambda: x.flatten(1))

    def forward(self, x):
        return at("model.forward", lambda: self.head(x.flatten(1)))


def network(input_shape, classes):
    return at("model.make", lambda: Net(input_shape, classes))


class Centroids:
    def fit(self, X, y, sample_weight=None):
        def usual():
            self.classes_ = np.unique(y)
            self.means = np.stack([X[y == c].mean(axis=0) for c in self.classes_])
            return self
        return at("estimator.fit", usual)

    def predict_proba(self, X):
        def usual():
            near = -((X[:, None] - self.means) ** 2).sum(axis=2)
            return np.exp(near - near.max(axis=1, keepdims=True)) / len(self.means)
        return at("estimator.predict", usual)


def estimator(input_shape, classes):
    return Centroids()


@dataclass(frozen=True)
class Mean(FusionStrategy):
    name: ClassVar[str] = "mean"

    def request(self, transfer_size, memory, generator):
        return at("strategy.request", lambda: None)

    def upload(self, client):
        return at("strategy.upload", lambda: super(Mean, self).upload(client))

    def fuse(self, knowledge, memory):
        return at("strategy.fuse", lambda: self.fused(knowledge))

    def fused(self, knowledge):
        q = softmax(knowledge.logits)
        n = len(q)
        given = dict(
            targets=at("strategy.targets", lambda: q.mean(axis=0)),
            weights=at("strategy.weights", lambda: np.full((n, n), 1 / n)),
            memory=at("strategy.memory", lambda: dict(a=np.zeros(2))),
            shared=at("strategy.shared", lambda: dict(b=np.zeros(2))),
            personal=at("strategy.personal", lambda: ()),
            absent=at("strategy.absent", lambda: dict()),
        )
        return Guidance(**given)

    def apply(self, client, guidance):
        return at("strategy.apply", lambda: super(Mean, self).apply(client, guidance))

    def loss(self, student_logits, targets):
        return at("strategy.loss", lambda: kd_kl(student_logits, targets, 1.0))

    def probabilities(self, targets):
        return at("strategy.probabilities", lambda: targets)


@dataclass(frozen=True)
class Holding(TaskInference, TaskParameters, Learner):
    name: ClassVar[str] = "holding"

    def check(self, network):
        return at("learner.check", lambda: None)

    def prepare(self, context):
        return at("learner.prepare", lambda: None)

    def begin_task(self, context):
        return at("learner.begin_task", lambda: None)

    def batch(self, context):
        return at("learner.batch", lambda: super(Holding, self).batch(context))

    def trainable(self, context):
        return at("learner.trainable", lambda: super(Holding, self).trainable(context))

    def end_task(self, context):
        return at("learner.end_task", lambda: None)

    def report(self, context):
        return at("learner.report", lambda: dict(held=1.0))

    def task_parameters(self, context, task):
        return at("learner.task_parameters", lambda: dict())

    def penalty(self, context, step):
        return at("learner.penalty", lambda: None)

    def project(self, context, gradients):
        return at("learner.project", lambda: gradients)

    def predict_without_task(self, context, model, x):
        return at("learner.predict_without_task", lambda: (self.predict(context, model, x), None))


def data():
    rng = np.random.default_rng(0)
    y = np.arange(200) % 4
    x = rng.normal(size=(200, 1, 4, 4)).astype(np.float32) + y[:, None, None, None]
    return at("data", lambda: (x[:160], y[:160], x[160:], y[160:]))


def parts(labels, clients, generator):
    return at("parts", lambda: np.array_split(generator.permutation(len(labels)), clients))
"""
PLACES = {
    "model": ("make", "forward", "features"),
    "estimator": ("fit", "predict"),
    "strategy": (
        *("request", "upload", "fuse", "targets", "weights", "memory", "shared", "personal", "absent"),
        *("apply", "loss", "probabilities"),
    ),
    "learner": (
        *("check", "prepare", "begin_task", "batch", "trainable", "end_task", "report", "task_parameters"),
        *("penalty", "project", "predict_without_task"),
    ),
}
DEEDS = (
    "raise ValueError('no')",
    "raise ValueError('several\\nlines\\nof it\\nhere')",
    "raise ValueError('half a pair \\ud800 of surrogates')",
    "raise ValueError('x' * 100_000)",
    "raise ValueError('\\x1b[2J \\0 \\r\\n')",
    "raise Exception",
    "raise Mute()",
    "raise Base('base')",
    "raise KeyboardInterrupt",
    "raise MemoryError",
    "raise StopIteration(3)",
    "raise GeneratorExit",
    "raise UnicodeDecodeError('utf-8', b'a', 0, 1, 'odd')",
    "raise OSError(28, 'No space left on device')",
    "raise ExceptionGroup('many', [ValueError('a'), TypeError('b')])",
    "raise Warning('a warning')",
    "sys.exit()",
    "sys.exit(0)",
    "sys.exit('bye')",
    "sys.exit(3)",
    "deeper()",
    "import nowhere_at_all",
    "assert False",
    "print('hello'); return usual()",
    "print('oh', file=sys.stderr); return usual()",
    "print('half \\ud800'); return usual()",
    "time.sleep(0.03); return usual()",
    "warnings.warn('watch out'); return usual()",
    "np.float32(1e38) * np.float32(1e38); return usual()",
    "np.zeros(3) / np.zeros(3); return usual()",
    "os.environ['OMP_NUM_THREADS'] = 'many'; return usual()",
    "np.random.seed(0); torch.manual_seed(0); return usual()",
    "return None",
    "return 'text'",
    "return 3",
    "return -1.5",
    "return b'bytes'",
    "return []",
    "return {}",
    "return {'a': 'b'}",
    "return {0: 1}",
    "return {'a': np.array(['x'])}",
    "return {'logits': 3}",
    "return {'logits': np.zeros((2, 2))}",
    "return {0: {'targets': np.zeros(2)}}",
    "return Odd()",
    "return usual",
    "return (usual(), usual())",
    "return [usual()] * 3",
    "return object()",
    "return np.zeros(0)",
    "return np.zeros((1, 1, 1, 1, 1))",
    "return np.array([1, 0, 0])",
    "return np.arange(5)",
    "return np.array('x')",
    "return np.array([None, 1])",
    "return np.full((3, 3), np.nan)",
    "return np.float64('nan')",
    "return torch.zeros(3)",
    "return torch.tensor(float('nan'), requires_grad=True)",
    "return torch.zeros((), dtype=torch.complex64)",
    "return altered(usual(), lambda v: v * np.nan)",
    "return altered(usual(), lambda v: v + np.inf)",
    "return altered(usual(), lambda v: v * 1e38)",
    "return altered(usual(), lambda v: v[:-1])",
    "return altered(usual(), lambda v: v[None])",
    "return altered(usual(), lambda v: v.astype(object) if isinstance(v, np.ndarray) else v.double())",
    "return altered(usual(), lambda v: v.astype(complex) if isinstance(v, np.ndarray) else v.long())",
    "return altered(usual(), lambda v: v.astype(np.float16) if isinstance(v, np.ndarray) else v.half())",
    "return altered(usual(), lambda v: v * 0 - 5)",
    "return altered(usual(), lambda v: v[..., ::-1] if isinstance(v, np.ndarray) else v.flip(-1))",
    "return altered(usual(), lambda v: torch.as_tensor(v).to('meta'))",
)
ALTERED = '''

def altered(given, how):
    """Change the arrays in what is given."""
    if isinstance(given, dict):
        return {name: altered(value, how) for name, value in given.items()}
    if isinstance(given, (list, tuple)):
        return [altered(value, how) for value in given]
    if isinstance(given, Guidance):
        return Guidance(targets=altered(given.targets, how))
    return how(given) if isinstance(given, (np.ndarray, torch.Tensor)) else given
'''


def attempt(place: Place, bench: Bench, rng: np.random.Generator) -> None:
    """Run a scenario with a plug-in that misbehaves at one place, from its first or second call on."""
    part = str(rng.choice([*PLACES, "data", "parts", "import"], p=[0.18, 0.14, 0.33, 0.22, 0.05, 0.05, 0.03]))
    where = part if part not in PLACES else f"{part}.{rng.choice(PLACES[part])}"
    deed = DEEDS[rng.integers(len(DEEDS))]
    source = SOURCE.format(where=where, after=int(rng.choice([0, 0, 1, 3, 8])), what=deed)
    head, _, rest = source.partition("\n\ndef misbehave")
    text = f"{head}{ALTERED}\n\ndef misbehave{rest}"
    (place.inputs / f"{MODULE}.py").write_text(text, encoding="utf-8")
    path = write_scenario(place, _scenario(part, rng))
    if rng.random() < 0.3:
        place.run(bench.command, ["check", path])
    else:
        place.run(bench.command, ["run", path, "--quiet", "--out", place.out / "run"])


def _scenario(part: str, rng: np.random.Generator) -> dict[str, Any]:
    scenario = stream_tables(f"{MODULE}:Holding") if part == "learner" else tables()
    if part in ("model", "import"):
        scenario["clients"][0] = {"model": f"{MODULE}:network"}
        strategies = ["knfu", "fedproto", "local"] if part == "model" else ["knfu"]
        scenario["fusion"] = {"strategy": str(rng.choice(strategies))}
        scenario["clients"] = scenario["clients"][:1]
    elif part == "estimator":
        scenario["clients"][0] = {"model": f"{MODULE}:estimator"}
    elif part == "strategy":
        scenario["fusion"] = {"strategy": f"{MODULE}:Mean"}
        if rng.random() < 0.4:
            scenario["clients"][0] = {"model": f"{MODULE}:estimator"}
        if rng.random() < 0.2:
            scenario["clients_per_round"] = 2
        if rng.random() < 0.1:
            scenario["fusion"]["upload_dtype"] = "float16"
    elif part == "data":
        scenario["data"] |= {"dataset": f"{MODULE}:data", "args": {}}
    elif part == "parts":
        scenario["data"]["partition"] = {"scheme": f"{MODULE}:parts", "min_samples": 2}
    return scenario
