"""Training a part of a model: what stays, what is remembered, and that all can be trained afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedkd.training.executor import Training, run_training
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.losses import count_correct, cross_entropy
from fedkd.training.optimizer import OptimizerSpec
from fedkd.training.phases import only, train_in_phases
from fedkd.training.weights import frozen_copy, gradient_function, weights_of


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def job_of(model: nn.Module, **changes: Any) -> TrainJob:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    job: dict[str, Any] = {
        "model": model,
        "arrays": (x, (x[:, 0] > 0).long()),
        "loss": lambda model, x, y: cross_entropy(model(x), y),
        "optimizer": OptimizerSpec("sgd", 0.1, momentum=0.9),
        "epochs": 1,
        "batch_size": 5,
        "generator": torch.Generator().manual_seed(2),
        "seed": 5,
    }
    return TrainJob(**job | changes)


def train(job: TrainJob) -> Training[FitResult]:
    return (yield job)


def first(name: str) -> bool:
    return name.startswith("0.")


def last(name: str) -> bool:
    return not first(name)


def scored(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(x)
    return cross_entropy(logits, y), count_correct(logits, y)


def test_training_one_part_keeps_the_others():
    model = network()
    seen = []

    def watched(job: TrainJob) -> Training[FitResult]:
        before = weights_of(job.model)
        result = yield job
        changed = {name for name, values in weights_of(job.model).items() if (values != before[name]).any()}
        seen.append((changed, job.epochs, job.seed, result.steps))
        return result

    parts = [(2, last), (1, first)]
    result = run_training(train_in_phases(job_of(model, scored_loss=scored), parts, watched))
    assert seen == [({"2.weight", "2.bias"}, 2, 5, 8), ({"0.weight", "0.bias"}, 1, 6, 4)]
    assert (result.steps, result.samples, result.hits.samples) == (12, 60, 20)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_optimiser_state_of_one_part_outlives_the_other():
    model = network()
    kept = run_training(train_in_phases(job_of(model, optimizer_state={}), [(1, first), (1, last)], train))
    names = {f"momentum_buffer/{name}" for name, _ in model.named_parameters()}
    assert set(kept.optimizer_state) == names
    again = train_in_phases(job_of(model, optimizer_state=kept.optimizer_state), [(1, last)], train)
    after = run_training(again).optimizer_state
    assert set(after) == names
    for name in names:
        assert torch.equal(after[name], kept.optimizer_state[name]) == ("/0." in name), name


def test_parameters_regain_their_requires_grad_after_an_error():
    model = network()
    model[0].bias.requires_grad_(False)  # as its owner has it
    with pytest.raises(RuntimeError), only(model, first):
        assert [name for name, p in model.named_parameters() if p.requires_grad] == ["0.weight"]
        raise RuntimeError
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["0.bias"]


def test_an_empty_part_is_an_error():
    with pytest.raises(ValueError, match="would train no parameter"):
        run_training(train_in_phases(job_of(network()), [(1, lambda name: False)], train))


def test_the_gradient_is_taken_at_the_given_weights():
    model, other = network(), network()
    with torch.no_grad():
        other[2].weight.mul_(1.5)
    x, y = job_of(model).arrays
    copy = frozen_copy(model, weights_of(model))
    gradient = gradient_function(copy, copy, ["2.weight"], x, y)
    rows = torch.tensor([3, 1, 7])
    for _ in range(2):  # nothing is left of the first call
        loss, found = gradient({"2.weight": weights_of(other)["2.weight"]}, rows.numpy())
        expected = cross_entropy(other(x[rows]), y[rows])
        (slope,) = torch.autograd.grad(expected, [other[2].weight])
        assert loss == pytest.approx(expected.item(), rel=1e-6) and list(found) == ["2.weight"]
        torch.testing.assert_close(torch.tensor(found["2.weight"]), slope)
    assert torch.equal(model[2].weight, network()[2].weight), "the model itself is left alone"
