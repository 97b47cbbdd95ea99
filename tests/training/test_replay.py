"""Replayed steps equal plain ones to the bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedkd.models.fast.batch_last import FEWEST
from fedkd.models.zoo.cnn import cnn
from fedkd.models.zoo.lenet import lenet
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.training.device import prepare_model
from fedkd.training.fast import replay
from fedkd.training.fast.replay import Recording, Replays
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.loop import fit
from fedkd.training.losses import count_correct, cross_entropy, kd_kl, logits_mae, soft_cross_entropy
from fedkd.training.optimizer import OptimizerSpec

SHAPE, CLASSES, SAMPLES = (1, 8, 8), 4, 42
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp(SHAPE, CLASSES, hidden=(6,)),
    "mlp with dropout": lambda: mlp(SHAPE, CLASSES, hidden=(6, 5), dropout=0.3),
    "lenet": lambda: lenet(SHAPE, CLASSES),
    "cnn": lambda: cnn(SHAPE, CLASSES),
    "resnet8, batch": lambda: resnet8(SHAPE, CLASSES, norm="batch"),
    "resnet8, group": lambda: resnet8(SHAPE, CLASSES, norm="group"),
}
SPECS = {
    "sgd": OptimizerSpec("sgd", 0.05),
    "momentum, clipped": OptimizerSpec("sgd", 0.05, momentum=0.9, weight_decay=0.01, clip_norm=0.5),
    "adam": OptimizerSpec("adam", 0.01),
    "adamw": OptimizerSpec("adamw", 0.01, weight_decay=0.1),
    "rmsprop": OptimizerSpec("rmsprop", 0.001, momentum=0.5),
}


def plain(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def scored(model: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(x)
    return cross_entropy(logits, y), count_correct(logits, y)


def job_of(make: Callable[[], nn.Module], spec: OptimizerSpec, **options: Any) -> TrainJob:
    """Return a job; the same at every call."""
    torch.manual_seed(1)
    model, draws = prepare_model(make(), "cpu"), torch.Generator().manual_seed(2)
    x = torch.randn(SAMPLES, *SHAPE, generator=draws)
    y = torch.randint(0, CLASSES, (SAMPLES,), generator=draws)
    whole: dict[str, Any] = {"loss": plain, "epochs": 3, "kind": "k", "replayable": True} | options
    made = {name: value(model, x) if name in MADE else value for name, value in whole.items()}
    return TrainJob(
        model, made.pop("arrays", (x, y)), made.pop("loss"), spec, made.pop("epochs"), 8, draws, 5, **made
    )


MADE = {"arrays", "constants", "correction"}
"""Options that are functions of a job's model and inputs."""


@pytest.fixture
def replayed(monkeypatch) -> list[int]:
    """Take down replays."""
    calls: list[int] = []
    replay = Recording.replay

    def noted(self: Recording, tensors: Sequence[Tensor]) -> list[Tensor]:
        calls.append(len(tensors))
        return replay(self, tensors)

    monkeypatch.setattr(Recording, "replay", noted)
    return calls


def assert_same(make_job: Callable[[], TrainJob], replays: Replays | None = None) -> None:
    """Compare a job whose steps are replayed with the same job whose steps are taken."""
    results, models, draws = [], [], []
    for found in (None, replays or Replays(patience=2)):
        job = make_job()
        torch.manual_seed(9)
        results.append(fit(job, found))
        models.append(job.model)
        draws.append((torch.rand(1), job.generator.get_state()))
    one, other = results
    assert isinstance(one, FitResult) and one == other
    assert (one.optimizer_state is None) == (other.optimizer_state is None)
    for name, value in (one.optimizer_state or {}).items():
        assert other.optimizer_state is not None and torch.equal(value, other.optimizer_state[name])
    for tensors in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(*tensors) and tensors[0].stride() == tensors[1].stride()
    assert all(parameter.grad is None for parameter in models[1].parameters())
    assert all(torch.equal(*pair) for pair in zip(*draws, strict=True))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("model", MODELS)
def test_replayed_steps_equal_plain_ones_to_the_bit(model, spec, replayed):
    options = {"scored_loss": scored, "guessing": 3, "optimizer_state": {}}
    assert_same(lambda: job_of(MODELS[model], SPECS[spec], **options))
    assert len(replayed) > 5


@pytest.mark.parametrize(
    "loss",
    [lambda z, t: kd_kl(z, t, 2.0), logits_mae, soft_cross_entropy],
    ids=["kd_kl", "logits_mae", "soft_cross_entropy"],
)
def test_replayed_distillation_equals_plain_to_the_bit(loss, replayed):
    def arrays(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.softmax(x.flatten(1)[:, :CLASSES], dim=1)

    def taught(model: Any, x: Tensor, targets: Tensor) -> Tensor:
        return loss(model(x), targets)

    assert_same(lambda: job_of(MODELS["mlp"], SPECS["adam"], arrays=arrays, loss=taught))
    assert replayed


def test_constants_and_corrections_are_read_at_every_replay(replayed):
    def pulled(model: Any, x: Tensor, y: Tensor, *start: Tensor) -> Tensor:
        pairs = zip(model.parameters(), start, strict=True)
        return plain(model, x, y) + sum((p - q).square().sum() for p, q in pairs)

    replays = Replays(patience=2)
    for factor in (0.1, 3.0):

        def of_model(model: nn.Module, x: Tensor, factor: float = factor) -> list[Tensor]:
            return [factor * p.detach() for p in model.parameters()]

        options = {"loss": pulled, "constants": of_model, "correction": of_model}
        assert_same(lambda options=options: job_of(MODELS["lenet"], SPECS["sgd"], **options), replays)
    assert len(replayed) > 2 * 3 * 5 - 5, "what the first job has recorded serves the second"


def test_steps_of_images_that_lie_batch_last_are_replayed(replayed):
    def make_job() -> TrainJob:
        return replace(job_of(MODELS["lenet"], SPECS["sgd"], epochs=4), batch_size=FEWEST)

    assert_same(make_job, Replays(patience=2))
    assert len(replayed) >= 5, "of eight whole batches two are seen, one is recorded"


def test_a_new_learning_rate_needs_a_new_recording(replayed):
    replays = Replays(patience=2)
    for lr in (0.1, 0.01, 0.1):
        assert_same(lambda lr=lr: job_of(MODELS["mlp"], OptimizerSpec("sgd", lr)), replays)


class Moody(nn.Module):
    """Keeps count, so that the same input is not answered alike twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = mlp(SHAPE, CLASSES, hidden=(6,)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x) * (1.0 + 0.01 * self.calls)


class Peeking(nn.Module):
    """Goes one of two ways, as a value decides."""

    def __init__(self, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.inner = first or nn.Identity(), mlp(SHAPE, CLASSES, hidden=(6,))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.inner(x) if x.sum() > 0 else self.inner(-x)


class Weighing(nn.Module):
    """Makes a number of a tensor, and goes on with that."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp(SHAPE, CLASSES, hidden=(6,))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1.0 + 0.1 * x.mean().item())


def counting() -> nn.Module:
    """Return one that has counted a batch before it decides."""
    return Peeking(nn.BatchNorm2d(1))


def dropping() -> nn.Module:
    """Return one that has drawn before it decides."""
    return Peeking(nn.Dropout(0.2))


ELSEWHERE = torch.ones(SAMPLES)


class Borrowing(nn.Module):
    """Uses a tensor that is nobody's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp(SHAPE, CLASSES, hidden=(6,))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * ELSEWHERE[0]


class Drawing(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.draws = mlp(SHAPE, CLASSES, hidden=(6,)), torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + torch.rand(CLASSES, generator=self.draws)


@pytest.mark.parametrize("make", [Moody, Weighing, Borrowing, Drawing, counting, dropping])
def test_steps_that_depend_on_more_than_tensors_are_never_replayed(make, replayed, monkeypatch):
    if make not in (counting, dropping):
        assert_same(lambda: job_of(make, SPECS["sgd"]))
        assert not replayed, "such a module declares nothing"
    for module in (Moody, Weighing, Borrowing, Drawing, Peeking):
        monkeypatch.setattr(module, "recordable", True, raising=False)
    assert_same(lambda: job_of(make, SPECS["sgd"], epochs=6))
    assert len(replayed) <= 2, "no more than a trial for each size of batch"


def test_data_dependent_branches_are_found_before_any_change(replayed, monkeypatch):
    monkeypatch.setattr(Peeking, "recordable", True, raising=False)
    monkeypatch.setattr(replay, "TRIALS", 5)
    decided: list[bool] = []
    run = Replays.replay

    def noted(self: Replays, *arguments: Any) -> list[Tensor] | None:
        told = run(self, *arguments)
        decided.append(told is not None)
        return told

    monkeypatch.setattr(Replays, "replay", noted)
    assert_same(lambda: job_of(Peeking, SPECS["momentum, clipped"], epochs=8))
    tried = decided.index(True)
    assert 5 < sum(decided) < len(decided) - tried, "some were decided as in the recording, some were not"
    assert len(replayed) - sum(decided) <= 2 * 5 + 2, "those that go astray too often are given up"


def hooked() -> nn.Module:
    model = MODELS["mlp"]()
    model.register_forward_pre_hook(lambda module, inputs: None)
    return model


def patched() -> nn.Module:
    model = MODELS["mlp"]()
    forward = model.forward
    model.forward = lambda x: forward(x)  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("make", [hooked, patched])
def test_modified_modules_are_not_replayed(make, replayed):
    assert_same(lambda: job_of(make, SPECS["sgd"]))
    assert not replayed


def test_layers_of_equal_shape_are_distinguished(replayed):
    replays = Replays(patience=2)
    for activation in (nn.ReLU, nn.Tanh, nn.ReLU):

        def make(activation: type[nn.Module] = activation) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), activation(), nn.Linear(6, CLASSES))

        assert_same(lambda make=make: job_of(make, SPECS["sgd"]), replays)
    assert replayed


@pytest.mark.parametrize(
    "change",
    [{"replayable": False}, {"kind": None}, {"accumulate": 2}, {"lr_schedule": "cosine"}],
    ids=lambda change: next(iter(change)),
)
def test_unsuitable_jobs_are_not_replayed(change, replayed):
    assert_same(lambda: job_of(MODELS["mlp"], SPECS["sgd"], **change))
    assert not replayed


def test_jobs_shorter_than_the_patience_are_not_replayed(replayed):
    assert_same(lambda: job_of(MODELS["mlp"], SPECS["sgd"], epochs=2), Replays(patience=12))
    assert not replayed


def test_the_number_of_recordings_is_limited(replayed, monkeypatch):
    monkeypatch.setattr(replay, "MOST", 3)
    replays = Replays(patience=2)
    numbers = {replays.number(("early", n)) for n in range(8)}
    assert len(numbers) == 8, "a step under way never meets another kind under its number"
    for round in range(8):
        spec = OptimizerSpec("sgd", 0.1 / (1 + round))
        assert_same(lambda spec=spec: job_of(MODELS["mlp"], spec), replays)
        assert len(replays._numbers) <= 3 and len(replays._proved) <= 3
    assert replayed
