"""Early stopping against a search through the weights of all epochs."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from fedkd.training.early_stopping import EarlyStopping
from fedkd.training.evaluate import predict_logits
from fedkd.training.job import TrainJob
from fedkd.training.loop import fit
from fedkd.training.losses import cross_entropy
from fedkd.training.optimizer import OptimizerSpec


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))


def samples(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return samples whose labels are half noise, so that training on them soon does no more good."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=generator)
    noise = torch.randint(0, 3, (count,), generator=generator)
    return x, torch.where(torch.rand(count, generator=generator) < 0.5, noise, x[:, :3].argmax(dim=1))


HELD_OUT = samples(40, 5)


def job(model: nn.Module, epochs: int, **options) -> TrainJob:
    def loss(model, x, y):
        return cross_entropy(model(x), y)

    spec = OptimizerSpec("adam", 0.03)
    return TrainJob(
        model, samples(30, 4), loss, spec, epochs, 8, torch.Generator().manual_seed(3), 7, **options
    )


def held_out_loss(model: nn.Module) -> float:
    return float(cross_entropy(predict_logits(model, HELD_OUT[0]), HELD_OUT[1]))


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(values, other.state_dict()[name]) for name, values in one.state_dict().items())


@pytest.mark.parametrize("patience", [1, 3, 50])
def test_training_stops_in_time_and_ends_with_the_best_weights(patience):
    courses = [network() for _ in range(21)]
    for epochs, model in enumerate(courses):
        fit(job(model, epochs))
    losses = [held_out_loss(model) for model in courses]
    best, stop = 0, 20
    for epoch in range(1, 21):
        if losses[epoch] < losses[best]:
            best = epoch
        elif epoch - best >= patience:
            stop = epoch
            break
    assert 0 < best < stop
    model = network()
    result = fit(job(model, 20, early_stopping=EarlyStopping(HELD_OUT, cross_entropy, patience)))
    assert result.steps == stop * 4
    assert equal(model, courses[best])


def test_the_initial_weights_may_be_the_best():
    model = network()
    start = deepcopy(model)
    worse = iter(range(9))
    stopping = EarlyStopping(HELD_OUT, lambda *_: torch.tensor(float(next(worse))), patience=2)
    assert fit(job(model, 9, early_stopping=stopping)).steps == 2 * 4
    assert equal(model, start) and model.training


def test_an_epoch_that_ruins_the_weights_ends_the_training():
    def ruins(model, x, y):
        calls.append(1)
        return cross_entropy(model(x), y) * (math.nan if len(calls) > 6 else 1.0)

    calls: list[int] = []
    model, plain = network(), network()
    prepared = job(model, 9, early_stopping=EarlyStopping(HELD_OUT, cross_entropy, patience=5))
    result = fit(TrainJob(**{**vars(prepared), "loss": ruins}))
    assert len(calls) == result.steps == 8 and math.isnan(result.loss)
    fit(job(plain, 1))
    assert held_out_loss(plain) < held_out_loss(network())
    assert equal(model, plain)


def test_early_stopping_needs_validation_samples():
    with pytest.raises(ValueError, match="patience must be ≥ 1, got 0"):
        EarlyStopping(HELD_OUT, cross_entropy, 0)
    with pytest.raises(ValueError, match="needs held-out samples"):
        EarlyStopping((torch.zeros(0, 5),), cross_entropy, 1)
