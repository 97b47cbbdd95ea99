"""A kept optimiser goes on as if there had been one job."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedkd.training.device import prepare_model
from fedkd.training.early_stopping import EarlyStopping
from fedkd.training.job import TrainJob
from fedkd.training.loop import fit
from fedkd.training.losses import cross_entropy
from fedkd.training.optimizer import OptimizerSpec
from fedkd.training.weights import arrays_to_tensors, tensors_to_arrays

SPECS = [
    OptimizerSpec("sgd", 0.05),
    OptimizerSpec("sgd", 0.05, momentum=0.9),
    OptimizerSpec("adam", 0.01, weight_decay=0.01),
    OptimizerSpec("adamw", 0.01, weight_decay=0.01),
    OptimizerSpec("rmsprop", 0.01),
    OptimizerSpec("rmsprop", 0.01, momentum=0.9),
]


def network() -> nn.Module:
    """Return a network with channels-last kernels, a frozen parameter and one that gets no gradient."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    model.unused = nn.Parameter(torch.ones(2))
    model[4].bias.requires_grad_(False)
    return prepare_model(model, "cpu")


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return cross_entropy(model(x), y)


def samples(count: int = 14, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 6, 6, generator=generator)
    return x, torch.randint(0, 3, (count,), generator=generator)


def job(model: nn.Module, spec: OptimizerSpec, epochs: int, **options) -> TrainJob:
    return TrainJob(model, samples(), loss, spec, epochs, 4, torch.Generator().manual_seed(3), 0, **options)


def weights(model: nn.Module) -> list[bytes]:
    return [values.tobytes() for values in tensors_to_arrays(model.state_dict()).values()]


@pytest.mark.parametrize("through_files", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_two_jobs_with_state_equal_one_job_to_the_bit(spec, through_files):
    whole, parts = network(), network()
    expected = fit(job(whole, spec, 3, optimizer_state={})).optimizer_state
    first = job(parts, spec, 1, optimizer_state={})
    state = fit(first).optimizer_state
    if through_files:
        arrays = tensors_to_arrays(state)
        assert all(array.flags.c_contiguous for array in arrays.values())
        state = arrays_to_tensors(arrays)
    before = {name: value.clone() for name, value in state.items()}
    found = fit(replace(first, epochs=2, optimizer_state=state)).optimizer_state
    assert weights(parts) == weights(whole)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]) and value.stride() == expected[name].stride(), name
        assert torch.equal(state[name], before[name]), name  # nobody writes into what was handed over


def test_two_jobs_without_state_differ_from_one():
    for spec in SPECS[1:]:
        whole, parts = network(), network()
        fit(job(whole, spec, 2))
        first = job(parts, spec, 1)
        assert fit(first).optimizer_state is None
        fit(first)
        assert weights(parts) != weights(whole), spec


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_state_tensors_are_named_after_their_parameters(spec):
    state = fit(job(network(), spec, 1, optimizer_state={})).optimizer_state
    trained = ["0.weight", "0.bias", "4.weight"]
    named = {f"{slot}/{name}" for slot in spec.slots for name in trained}
    # A momentum that has seen no gradient yet is zero.
    unused = {"momentum_buffer/unused"} if spec.name == "sgd" and spec.momentum else set()
    assert set(state) == named | unused
    assert not any(state[name].any() for name in unused)
    assert {value.dtype for value in state.values()} <= {torch.float32}


def test_parameters_unknown_to_a_state_begin_afresh():
    adam, sgd = OptimizerSpec("adam", 0.01), OptimizerSpec("sgd", 0.05, momentum=0.9)
    foreign = fit(job(network(), sgd, 1, optimizer_state={})).optimizer_state
    assert not foreign.keys() & fit(job(network(), adam, 1, optimizer_state={})).optimizer_state.keys()
    for spec, state in ((adam, foreign), (sgd, {"momentum_buffer/0.bias": torch.zeros(4)})):
        fresh, given = network(), network()
        fit(job(fresh, spec, 1))
        fit(job(given, spec, 1, optimizer_state=state))
        assert weights(given) == weights(fresh)


def test_a_state_of_another_shape_is_an_error():
    state = {"momentum_buffer/0.bias": torch.zeros(5)}
    with pytest.raises(
        ValueError, match=r"momentum_buffer/0\.bias has the shape \(5,\), its parameter \(4,\)"
    ):
        fit(job(network(), OptimizerSpec("sgd", 0.1, momentum=0.9), 1, optimizer_state=state))


class Scores:
    """Rules that train a tensor that is no parameter of the model."""

    def __init__(self, model: nn.Module) -> None:
        self.own = torch.zeros(3, requires_grad=True)
        self.parameters = [model[4].weight, self.own]

    def before_step(self) -> None: ...

    def penalty(self, batch, value):
        return (self.own - 1.0).square().sum()

    def after_backward(self) -> None: ...

    def after_step(self) -> None: ...

    def after_epoch(self) -> None: ...

    def before_evaluation(self) -> None: ...


def test_tensors_of_rules_are_saved():
    spec = SPECS[2]
    models = [network(), network()]
    rules = [Scores(model) for model in models]
    fit(job(models[0], spec, 2, rules=rules[0]))
    first = job(models[1], spec, 1, rules=rules[1], optimizer_state={})
    state = fit(first).optimizer_state
    assert {name.split("/")[1] for name in state} == {"4.weight", "tensor.1"}
    fit(replace(first, optimizer_state=state))
    assert torch.equal(rules[0].own, rules[1].own) and weights(models[0]) == weights(models[1])


@pytest.mark.parametrize("best", [0, 2])
def test_early_stopping_restores_the_state_of_the_best_weights(best):
    verdicts = iter([9 - epoch if epoch <= best else 9 + epoch for epoch in range(9)])
    stopping = EarlyStopping(samples(), lambda *_: torch.tensor(float(next(verdicts))), patience=2)
    given = fit(job(network(), SPECS[2], 1, optimizer_state={})).optimizer_state
    stopped, plain = network(), network()
    result = fit(job(stopped, SPECS[2], 9, optimizer_state=given, early_stopping=stopping))
    expected = fit(job(plain, SPECS[2], best, optimizer_state=given)).optimizer_state
    assert result.steps == (best + 2) * 4
    assert weights(stopped) == weights(plain)
    for name, value in expected.items():
        assert np.array_equal(value.numpy(), result.optimizer_state[name].numpy()), name
