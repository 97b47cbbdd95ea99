"""`fit` against optimisers written out by hand in float64, and its promises."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

from fedkd.errors import TrainingDiverged
from fedkd.training.device import prepare_model
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.loop import fit
from fedkd.training.losses import cross_entropy
from fedkd.training.optimizer import OptimizerSpec

SAMPLES, FEATURES, CLASSES = 11, 5, 3
SGD = OptimizerSpec("sgd", 0.1)


def supervised(model, x, y):
    return cross_entropy(model(x), y)


def data(samples: int = SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, FEATURES, generator=generator)
    return x, torch.randint(0, CLASSES, (samples,), generator=generator)


def linear() -> nn.Linear:
    model = nn.Linear(FEATURES, CLASSES)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def job(
    model, arrays, optimizer=SGD, *, loss=supervised, epochs=1, batch_size=4, order_seed=9, seed=0, **more
) -> TrainJob:
    order = torch.Generator().manual_seed(order_seed)
    return TrainJob(model, arrays, loss, optimizer, epochs, batch_size, order, seed, **more)


def run(*arguments, **options) -> FitResult:
    return fit(job(*arguments, **options))


def by_hand(spec: OptimizerSpec, epochs: int, batch_size: int) -> tuple[np.ndarray, float]:
    """Train the linear softmax classifier in float64; return its weights ``[C, F + 1]`` and the mean loss."""
    x, y = (array.numpy() for array in data())
    model = linear()
    w = np.concatenate([model.weight.detach().numpy(), model.bias.detach().numpy()[:, None]], axis=1)
    w = w.astype(np.float64)
    generator = torch.Generator().manual_seed(9)
    first, second = np.zeros_like(w), np.zeros_like(w)
    losses, step = [], 0
    for _ in range(epochs):
        order = torch.randperm(SAMPLES, generator=generator).numpy()
        for start in range(0, SAMPLES, batch_size):
            index = order[start : start + batch_size]
            inputs = np.concatenate([x[index].astype(np.float64), np.ones((len(index), 1))], axis=1)
            p = np.exp(inputs @ w.T)
            p /= p.sum(axis=1, keepdims=True)
            losses += list(-np.log(p[np.arange(len(index)), y[index]]))
            gradient = (p - np.eye(CLASSES)[y[index]]).T @ inputs / len(index)
            if spec.clip_norm is not None:
                gradient *= min(1.0, spec.clip_norm / np.linalg.norm(gradient))
            step += 1
            if spec.name == "adamw":
                w -= spec.lr * spec.weight_decay * w
            else:
                gradient = gradient + spec.weight_decay * w
            if spec.name == "sgd":
                first = spec.momentum * first + gradient
                w -= spec.lr * first
            else:
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                m, v = first / (1 - 0.9**step), second / (1 - 0.999**step)
                w -= spec.lr * m / (np.sqrt(v) + 1e-8)
    return w, float(np.mean(losses))


@pytest.mark.parametrize(
    "spec",
    [
        OptimizerSpec("sgd", 0.1),
        OptimizerSpec("sgd", 0.1, momentum=0.9, weight_decay=0.05),
        OptimizerSpec("sgd", 0.1, momentum=0.9, clip_norm=0.3),
        OptimizerSpec("sgd", 0.1, clip_norm=100.0),
        OptimizerSpec("adam", 0.01),
        OptimizerSpec("adam", 0.01, weight_decay=0.1, clip_norm=0.2),
        OptimizerSpec("adamw", 0.01, weight_decay=0.5),
    ],
    ids=str,
)
def test_fit_is_the_optimiser_written_out_by_hand(spec):
    model = linear()
    result = run(model, data(), spec, epochs=3, batch_size=4)
    expected, loss = by_hand(spec, epochs=3, batch_size=4)
    got = np.concatenate([model.weight.detach().numpy(), model.bias.detach().numpy()[:, None]], axis=1)
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert (result.steps, result.samples) == (9, 33)


def test_every_sample_is_seen_once_an_epoch_in_new_order_and_arrays_stay_together():
    x, _ = data()
    marks = torch.arange(SAMPLES)
    seen: list[list[int]] = []

    def loss(model, x_batch, mark):
        assert torch.equal(x_batch, x[mark])
        seen.append(mark.tolist())
        return model(x_batch).square().mean()

    run(linear(), (x, marks), loss=loss, epochs=2, batch_size=4)
    assert [len(batch) for batch in seen] == [4, 4, 3, 4, 4, 3]
    first, second = list(chain(*seen[:3])), list(chain(*seen[3:]))
    assert sorted(first) == sorted(second) == list(range(SAMPLES))
    assert first != second


def dropout_net() -> nn.Module:
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, CLASSES))


def trained_bytes(**options) -> bytes:
    model = dropout_net()
    run(model, data(), **options)
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


def test_the_seeds_fix_the_weights_to_the_byte():
    same = trained_bytes(epochs=3, seed=5)
    torch.manual_seed(99)
    torch.rand(3)
    assert trained_bytes(epochs=3, seed=5) == same
    assert trained_bytes(epochs=3, seed=6) != same
    assert trained_bytes(epochs=3, seed=5, order_seed=10) != same


def test_nothing_global_changes():
    model = dropout_net()
    before = (torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled())
    run(model, data())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == before[1:]
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_fit_never_writes_into_its_arrays():
    x, y = data()
    before = x.clone(), y.clone()
    run(linear(), (x, y), epochs=2)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


def norm_net() -> nn.Module:
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))


@pytest.mark.parametrize(
    ("net", "samples", "batch_size", "steps", "seen"),
    [
        (norm_net, 9, 4, 2, 8),  # the batch of one goes
        (norm_net, 10, 4, 3, 10),  # a batch of two stays
        (linear, 9, 4, 3, 9),  # without BatchNorm nothing goes
        (linear, 1, 4, 1, 1),
        (linear, 3, 1, 3, 3),
        (linear, 3, 99, 1, 3),
    ],
)
def test_only_a_last_batch_of_one_is_left_out_and_only_for_batchnorm(net, samples, batch_size, steps, seen):
    result = run(net(), data(samples), batch_size=batch_size)
    assert (result.steps, result.samples) == (steps, seen)


def test_divergence_names_the_epoch():
    def nan_from_the_fourth_step(model, x, y):
        calls.append(1)
        return supervised(model, x, y) * (math.nan if len(calls) > 3 else 1.0)

    calls: list[int] = []
    message = r"training loss became nan in epoch 2; a lower training\.lr may help"
    with pytest.raises(TrainingDiverged, match=message):
        run(linear(), data(), loss=nan_from_the_fourth_step, epochs=3)
    assert len(calls) == 6


def test_too_large_a_step_diverges():
    def square(model, x, y):
        return model(x).square().mean()

    with pytest.raises(TrainingDiverged, match=r"training loss became (inf|nan) in epoch"):
        run(linear(), data(), OptimizerSpec("sgd", 1e6), loss=square, epochs=10)


def test_a_last_step_that_ruins_the_weights_is_noticed():
    def finite_loss_infinite_gradient(model, x, y):
        return (model(x) * 0.0).abs().sqrt().sum()

    with pytest.raises(TrainingDiverged, match="weights stopped being finite in epoch 1"):
        run(linear(), data(), loss=finite_loss_infinite_gradient, batch_size=SAMPLES)


def test_no_epochs_change_nothing():
    model = linear()
    before = model.weight.detach().clone()
    result = run(model, data(), epochs=0)
    assert (result.steps, result.samples) == (0, 0)
    assert math.isnan(result.loss)
    assert torch.equal(model.weight, before)


def test_frozen_parameters_stay():
    model = linear()
    model.bias.requires_grad_(False)
    bias, weight = model.bias.clone(), model.weight.detach().clone()
    run(model, data(), OptimizerSpec("adamw", 0.1, weight_decay=0.5))
    assert torch.equal(model.bias, bias)
    assert not torch.equal(model.weight, weight)


def test_channels_last_trains_the_same_model():
    def net():
        torch.manual_seed(2)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, CLASSES))

    generator = torch.Generator().manual_seed(1)
    arrays = (torch.randn(20, 3, 8, 8, generator=generator), torch.randint(0, 3, (20,), generator=generator))
    plain, fast = net(), prepare_model(net(), "cpu")
    losses = [run(model, arrays, epochs=3).loss for model in (plain, fast)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    # The layout survives training, or the second round would be slow.
    assert fast[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not fast[0].weight.is_contiguous()


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_a_correction_is_added_to_every_gradient_after_clipping(clip_norm):
    model, corrected = linear(), linear()
    spec = OptimizerSpec("sgd", 0.1, clip_norm=clip_norm)
    correction = [torch.full_like(parameter, 0.5) for parameter in model.parameters()]
    run(corrected, data(), spec, batch_size=SAMPLES, correction=correction)
    run(model, data(), spec, batch_size=SAMPLES)
    for plain, shifted in zip(model.parameters(), corrected.parameters(), strict=True):
        torch.testing.assert_close(shifted, plain - 0.1 * 0.5)


def test_a_correction_moves_parameters_that_the_loss_ignores():
    model = linear()
    bias = model.bias.detach().clone()
    correction = [torch.zeros_like(model.weight), torch.ones_like(model.bias)]

    def without_bias(model, x, y):
        return cross_entropy(x @ model.weight.T, y)

    run(model, data(), loss=without_bias, batch_size=SAMPLES, correction=correction)
    torch.testing.assert_close(model.bias, bias - 0.1)


class KeepsOneChannel:
    """Rules that leave the weights of one input channel a gradient, laid out channels first."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.parameters = [weight]

    def before_step(self) -> None: ...

    def penalty(self, inputs, loss) -> None: ...

    def after_backward(self) -> None:
        (weight,) = self.parameters
        allowed = torch.zeros(weight.shape)
        allowed[:, 1] = 1.0
        weight.grad = (weight.grad.contiguous() * allowed).contiguous()

    def after_step(self) -> None: ...

    def after_epoch(self) -> None: ...


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_gradient_that_rules_return_reaches_the_weights_it_is_for(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    model = prepare_model(model, "cpu")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, 3, 5, 5, generator=generator)
    y = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    before = model[0].weight.detach().clone()
    rules = KeepsOneChannel(model[0].weight)
    run(model, (x, y), OptimizerSpec(name, 0.1), batch_size=SAMPLES, rules=rules)
    changed = (model[0].weight != before).any(dim=0).any(dim=-1).any(dim=-1)
    assert changed.tolist() == [False, True, False]
