"""Vectorised jobs equal single ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedkd.errors import TrainingDiverged
from fedkd.training.executor import LoopExecutor
from fedkd.training.fast.vectorised import VectorisedExecutor, fit_together, kind_of
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.losses import count_correct, cross_entropy, kd_kl
from fedkd.training.majority_guessing import TrainingHits
from fedkd.training.optimizer import OptimizerSpec

SIZES = (24, 7, 33, 8, 24, 30, 3)
"""Samples of each job: several whole batches, one, none; rests of equal and of different sizes."""
CLASSES = 3


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, CLASSES))


def convolutions() -> nn.Module:
    layers = nn.Conv2d(1, 2, 2), nn.GroupNorm(1, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(nn.Unflatten(1, (1, 5, 1)), nn.Upsample((5, 5)), *layers, nn.Linear(8, CLASSES)).to(
        memory_format=torch.channels_last
    )


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def scored(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(x)
    return cross_entropy(logits, y), count_correct(logits, y)


def jobs_of(make: Callable[[], nn.Module], spec: OptimizerSpec, **options: Any) -> list[TrainJob]:
    """Return one job for each size; the same at every call."""
    found = []
    for seed, samples in enumerate(SIZES):
        torch.manual_seed(seed)
        model, draws = make(), torch.Generator().manual_seed(100 + seed)
        x = torch.randn(samples, 5, generator=draws)
        y = torch.randint(0, CLASSES, (samples,), generator=draws)
        of_job = {name: value(model) if callable(value) else value for name, value in options.items()}
        found.append(TrainJob(model, (x, y), loss, spec, 3, 8, draws, seed, kind="k", **of_job))
    return found


def together(jobs: Sequence[TrainJob], number: int = 16) -> list[FitResult | Exception]:
    return VectorisedExecutor(number).run(jobs)


def assert_close(found: Sequence[TrainJob], expected: Sequence[TrainJob], **tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.generator.get_state().equal(other.generator.get_state())
        assert one.model.training
        for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, **(tolerance or {"rtol": 1e-5, "atol": 1e-5}))
            assert p.grad is None
            assert p.stride() == q.stride() and p.untyped_storage().nbytes() == q.untyped_storage().nbytes()


SPECS = {
    "sgd": OptimizerSpec("sgd", 0.1),
    "sgd with momentum": OptimizerSpec("sgd", 0.05, momentum=0.9, weight_decay=0.01),
    "adam": OptimizerSpec("adam", 0.01),
    "adamw": OptimizerSpec("adamw", 0.01, weight_decay=0.1),
    "rmsprop": OptimizerSpec("rmsprop", 0.001, momentum=0.5),
    "clipped": OptimizerSpec("sgd", 0.3, clip_norm=0.2),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("make", [mlp, convolutions])
def test_vectorised_jobs_end_like_single_ones(make, name):
    options = {"scored_loss": lambda model: scored, "guessing": 2, "optimizer_state": lambda model: {}}
    expected, found = (jobs_of(make, SPECS[name], **options) for _ in range(2))
    alone, side_by_side = LoopExecutor().run(expected), together(found)
    assert_close(found, expected)
    for one, other in zip(side_by_side, alone, strict=True):
        assert isinstance(one, FitResult) and isinstance(other, FitResult)
        assert (one.steps, one.samples, one.hits) == (other.steps, other.samples, other.hits)
        assert isinstance(one.hits, TrainingHits) and one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.optimizer_state is not None and other.optimizer_state is not None
        assert one.optimizer_state.keys() == other.optimizer_state.keys()
        for slot, value in one.optimizer_state.items():
            torch.testing.assert_close(value, other.optimizer_state[slot], rtol=1e-4, atol=1e-6)


def test_one_step_equals_a_hand_computation():
    """Of a linear model under the mean square, in float64: w − lr · 2/n · Σ (w·x − y) x."""
    spec = OptimizerSpec("sgd", 0.1)
    draws = torch.Generator().manual_seed(1)
    jobs, expected = [], []
    for seed in range(3):
        model = nn.Linear(2, 1, bias=False).double()
        x, y = torch.randn(4, 2, generator=draws).double(), torch.randn(4, 1, generator=draws).double()
        w = model.weight.detach().clone()
        expected.append(w - 0.1 * 2 / 4 * sum((w @ a - b) * a for a, b in zip(x, y, strict=True)))
        squares = lambda model, x, y: (model(x) - y).square().mean()  # noqa: E731
        jobs.append(TrainJob(model, (x, y), squares, spec, 1, 4, draws, seed, kind="squares"))
    assert not any(isinstance(one, Exception) for one in fit_together(jobs))
    for job, weights in zip(jobs, expected, strict=True):
        torch.testing.assert_close(job.model.weight, weights, rtol=1e-12, atol=1e-12)


def test_vectorised_training_repeats_to_the_bit():
    first, second = (jobs_of(mlp, SPECS["adam"]) for _ in range(2))
    assert together(first) == together(second)
    assert_close(first, second, rtol=0.0, atol=0.0)


def test_vectorised_jobs_continue_the_optimiser():
    expected, found = (jobs_of(mlp, SPECS["adam"], optimizer_state=lambda model: {}) for _ in range(2))
    for run, jobs in ((LoopExecutor().run, expected), (together, found)):
        for _ in range(2):
            results = run(jobs)
            jobs[:] = [
                replace(job, optimizer_state=result.optimizer_state)  # type: ignore[union-attr]
                for job, result in zip(jobs, results, strict=True)
            ]
    assert_close(found, expected)


def test_each_job_has_its_own_constants_and_corrections():
    def pulled(model: nn.Module, x: Tensor, y: Tensor, *start: Tensor) -> Tensor:
        pull = sum((p - q).square().sum() for p, q in zip(model.parameters(), start, strict=True))
        return loss(model, x, y) + 0.3 * pull

    options = {
        "constants": lambda model: [p.detach().clone() for p in model.parameters()],
        "correction": lambda model: [
            torch.full_like(p, p.detach().sum().item() / 10) for p in model.parameters()
        ],
    }
    expected, found = (
        [replace(job, loss=pulled) for job in jobs_of(mlp, SPECS["sgd"], **options)] for _ in range(2)
    )
    LoopExecutor().run(expected)
    together(found)
    assert_close(found, expected)
    assert not torch.allclose(found[0].model[0].weight, jobs_of(mlp, SPECS["sgd"])[0].model[0].weight)


def test_frozen_parameters_stay():
    def make() -> nn.Module:
        model = mlp()
        model[0].weight.requires_grad_(False)
        return model

    expected, found = (jobs_of(make, SPECS["sgd"]) for _ in range(2))
    LoopExecutor().run(expected)
    before = [job.model[0].weight.clone() for job in found]
    together(found)
    assert_close(found, expected)
    assert all(job.model[0].weight.equal(weight) for job, weight in zip(found, before, strict=True))


def test_a_diverging_job_leaves_the_others_unaffected():
    expected, found = (jobs_of(mlp, SPECS["sgd"]) for _ in range(2))
    for jobs in (expected, found):
        jobs[2].arrays[0][5] = float("inf")
    alone, side_by_side = LoopExecutor().run(expected), together(found)
    assert isinstance(side_by_side[2], TrainingDiverged) and str(side_by_side[2]) == str(alone[2])
    rest = [place for place in range(len(SIZES)) if place != 2]
    assert all(isinstance(side_by_side[place], FitResult) for place in rest)
    assert_close([found[place] for place in rest], [expected[place] for place in rest])


class Peeking(nn.Module):
    """Does something else for some inputs, which `vmap` cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if float(x.sum()) > 0 else self.inner(-x)


FOR_THE_LOOP: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Sequential(mlp(), nn.Dropout(0.5)),
    "running statistics": lambda: nn.Sequential(nn.BatchNorm1d(5), mlp()),
    "a look at values": Peeking,
}


@pytest.mark.parametrize("what", FOR_THE_LOOP)
def test_unvectorisable_clients_run_alone_to_the_bit(what):
    expected, found = (jobs_of(FOR_THE_LOOP[what], SPECS["adam"]) for _ in range(2))
    executor = VectorisedExecutor(16)
    assert executor.run(found) == LoopExecutor().run(expected)
    assert_close(found, expected, rtol=0.0, atol=0.0)
    for one, other in zip(found, expected, strict=True):
        assert all(map(torch.equal, one.model.buffers(), other.model.buffers()))


def test_compatible_jobs_form_one_group(monkeypatch):
    groups: list[int] = []
    run = VectorisedExecutor._run_group

    def noted(self: VectorisedExecutor, jobs: Sequence[TrainJob]) -> list[FitResult | Exception]:
        groups.append(len(jobs))
        return run(self, jobs)

    monkeypatch.setattr(VectorisedExecutor, "_run_group", noted)
    jobs = jobs_of(mlp, SPECS["sgd"])
    jobs[1] = replace(jobs[1], kind=None)
    jobs[3] = replace(jobs[3], epochs=1)
    together(jobs, 3)
    assert sorted(groups) == [1, 1, 2, 3]


def test_layers_of_equal_shape_are_distinguished():
    def mixed() -> nn.Module:
        activation = [nn.ReLU, nn.Tanh][int(torch.initial_seed()) % 2]()
        return nn.Sequential(nn.Linear(5, 6), activation, nn.Linear(6, CLASSES))

    expected, found = (jobs_of(mixed, SPECS["sgd"]) for _ in range(2))
    assert len({repr(job.model) for job in found}) == 2
    LoopExecutor().run(expected)
    together(found)
    assert_close(found, expected)


def test_a_failing_loss_fails_all_jobs():
    def broken(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise ValueError("no")

    outcomes = together([replace(job, loss=broken) for job in jobs_of(mlp, SPECS["sgd"])])
    assert [str(outcome) for outcome in outcomes] == ["no"] * len(SIZES)


@pytest.mark.parametrize(
    "change",
    [{"kind": None}, {"accumulate": 2}, {"lr_schedule": "cosine"}, {"arrays": (torch.empty(0, 5),) * 2}],
    ids=lambda change: next(iter(change)),
)
def test_jobs_for_the_loop_have_no_group(change):
    job = jobs_of(mlp, SPECS["sgd"])[0]
    assert kind_of(job) is not None
    assert kind_of(replace(job, **change)) is None
    job.model[0].register_forward_hook(lambda module, inputs, output: None)
    assert kind_of(job) is None


def test_distillation_can_be_vectorised():
    def taught(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        return kd_kl(model(x), targets, 2.0)

    def make() -> list[TrainJob]:
        made = jobs_of(mlp, SPECS["adam"])
        targets = [
            torch.softmax(torch.randn(len(j.arrays[0]), CLASSES, generator=j.generator), 1) for j in made
        ]
        return [
            replace(job, arrays=(job.arrays[0], t), loss=taught) for job, t in zip(made, targets, strict=True)
        ]

    expected, found = make(), make()
    LoopExecutor().run(expected)
    assert all(isinstance(one, FitResult) for one in fit_together(found))
    assert_close(found, expected)
