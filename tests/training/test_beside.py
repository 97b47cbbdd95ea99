"""Networks that are trained in the same steps as a job's model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose
from torch import nn

from fedkd.training.early_stopping import EarlyStopping
from fedkd.training.fast.vectorised import kind_of
from fedkd.training.job import AuxNetwork, TrainJob
from fedkd.training.loop import fit
from fedkd.training.losses import cross_entropy
from fedkd.training.optimizer import OptimizerSpec

X = torch.randn(21, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(21) % 3


def network(seed: int, *more: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), *more, nn.ReLU(), nn.Linear(5, 3))


def job_of(model: nn.Module, other: nn.Module, **changes: Any) -> TrainJob:
    def loss(model, x, y):
        return cross_entropy(model(x), y) + 3 * cross_entropy(other(x), y)

    settings: dict[str, Any] = {
        "optimizer": OptimizerSpec("sgd", 0.1, momentum=0.9, clip_norm=0.5),
        "epochs": 2,
        "batch_size": 5,
        "generator": torch.Generator().manual_seed(3),
        "seed": 4,
        "aux_networks": [AuxNetwork("other", other, 0.02)],
    }
    return TrainJob(model, (X, Y), loss, **(settings | changes))


def test_each_network_has_its_own_clipping_and_learning_rate() -> None:
    model, other = network(1), network(2)
    alone = [copy.deepcopy(model), copy.deepcopy(other)]
    fit(job_of(model, other))
    optimizers = [
        torch.optim.SGD(own.parameters(), lr=lr, momentum=0.9)
        for own, lr in zip(alone, (0.1, 0.02), strict=True)
    ]
    draws = torch.Generator().manual_seed(3)
    for rows in (rows for _ in range(2) for rows in torch.randperm(21, generator=draws).split(5)):
        for own, optimizer, weight in zip(alone, optimizers, (1, 3), strict=True):
            optimizer.zero_grad()
            (weight * F.cross_entropy(own(X[rows]), Y[rows])).backward()
            nn.utils.clip_grad_norm_(own.parameters(), 0.5)
            optimizer.step()
    for found, wanted in zip((model, other), alone, strict=True):
        for one, same in zip(found.parameters(), wanted.parameters(), strict=True):
            assert_allclose(one.detach(), same.detach(), atol=1e-6)


def test_optimiser_state_of_all_clients_is_continued() -> None:
    spec = OptimizerSpec("adam", 0.05)
    whole, parts = [network(1), network(2)], [network(1), network(2)]
    state = fit(job_of(*whole, optimizer=spec, epochs=1, optimizer_state={})).optimizer_state
    draws = torch.Generator().manual_seed(8)
    fit(job_of(*whole, optimizer=spec, epochs=1, optimizer_state=state, generator=draws))

    saved = {name: value.clone() for name, value in (state or {}).items()}
    assert {"exp_avg/0.weight", "exp_avg/beside/other/0.weight"} <= saved.keys()
    fit(job_of(*parts, optimizer=spec, epochs=1, optimizer_state={}))
    draws = torch.Generator().manual_seed(8)
    fit(job_of(*parts, optimizer=spec, epochs=1, optimizer_state=saved, generator=draws))
    for one, other in zip(whole, parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_early_stopping_restores_all_networks() -> None:
    model, other = network(1), network(2, nn.BatchNorm1d(5))
    before = copy.deepcopy(other.state_dict())
    held_out = (X, (Y + 1) % 3)  # what is learned makes these worse
    stopping = EarlyStopping(held_out, cross_entropy, patience=2)
    fit(job_of(model, other, early_stopping=stopping, optimizer=OptimizerSpec("sgd", 0.5), epochs=4))
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_batch_norm_in_an_auxiliary_network_skips_a_batch_of_one() -> None:
    # 21 samples are 4 batches of 5, and 1.
    assert fit(job_of(network(1), network(2, nn.BatchNorm1d(5)))).steps == 8
    assert fit(job_of(network(1), network(2))).steps == 10


def test_auxiliary_networks_train_in_the_loop() -> None:
    assert kind_of(job_of(network(1), network(2))) is None
    with pytest.raises(ValueError, match="must have no kind"):
        job_of(network(1), network(2), kind="train")
