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
from fedkd.training.early_stopping import EarlyStopping
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.loop import all_finite, fit
from fedkd.training.losses import cross_entropy
from fedkd.training.optimizer import OPTIMIZERS, OptimizerSpec

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


def by_hand(spec: OptimizerSpec, epochs: int, step_samples: int, cosine: bool) -> tuple[np.ndarray, float]:
    """Train the linear softmax classifier in float64; return its weights ``[C, F + 1]`` and the mean loss."""
    x, y = (array.numpy() for array in data())
    w = as_one(linear()).astype(np.float64)
    generator = torch.Generator().manual_seed(9)
    first, second = np.zeros_like(w), np.zeros_like(w)
    losses, step, steps = [], 0, epochs * math.ceil(SAMPLES / step_samples)
    for _ in range(epochs):
        order = torch.randperm(SAMPLES, generator=generator).numpy()
        for start in range(0, SAMPLES, step_samples):
            index = order[start : start + step_samples]
            inputs = np.concatenate([x[index].astype(np.float64), np.ones((len(index), 1))], axis=1)
            p = np.exp(inputs @ w.T)
            p /= p.sum(axis=1, keepdims=True)
            losses += list(-np.log(p[np.arange(len(index)), y[index]]))
            gradient = (p - np.eye(CLASSES)[y[index]]).T @ inputs / len(index)
            if spec.clip_norm is not None:
                gradient *= min(1.0, spec.clip_norm / np.linalg.norm(gradient))
            lr = spec.lr * 0.5 * (1 + math.cos(math.pi * step / steps)) if cosine else spec.lr
            step += 1
            if spec.name == "adamw":
                w -= lr * spec.weight_decay * w
            else:
                gradient = gradient + spec.weight_decay * w
            if spec.name == "sgd":
                first = spec.momentum * first + gradient
                w -= lr * first
            elif spec.name == "rmsprop":
                second = 0.99 * second + 0.01 * gradient**2
                first = spec.momentum * first + gradient / (np.sqrt(second) + 1e-8)
                w -= lr * first
            else:
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                m, v = first / (1 - 0.9**step), second / (1 - 0.999**step)
                w -= lr * m / (np.sqrt(v) + 1e-8)
    return w, float(np.mean(losses))


def as_one(model: nn.Linear) -> np.ndarray:
    return np.concatenate([model.weight.detach().numpy(), model.bias.detach().numpy()[:, None]], axis=1)


SPECS = [
    OptimizerSpec("sgd", 0.1),
    OptimizerSpec("sgd", 0.1, momentum=0.9, weight_decay=0.05),
    OptimizerSpec("sgd", 0.1, momentum=0.9, clip_norm=0.3),
    OptimizerSpec("sgd", 0.1, clip_norm=100.0),
    OptimizerSpec("adam", 0.01),
    OptimizerSpec("adam", 0.01, weight_decay=0.1, clip_norm=0.2),
    OptimizerSpec("adamw", 0.01, weight_decay=0.5),
    OptimizerSpec("rmsprop", 0.01),
    OptimizerSpec("rmsprop", 0.01, momentum=0.9, weight_decay=0.1),
]


@pytest.mark.parametrize("lr_schedule", ["constant", "cosine"])
# Batches a step: one; two, the last of an epoch smaller; two and then one; all.
@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 1), (3, 2), (4, 2), (4, 3), (4, 9)])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_fit_equals_a_float64_optimiser(spec, batch_size, accumulate, lr_schedule):
    model = linear()
    result = run(
        model, data(), spec, epochs=3, batch_size=batch_size, accumulate=accumulate, lr_schedule=lr_schedule
    )
    together = min(batch_size * accumulate, SAMPLES)
    expected, loss = by_hand(spec, 3, together, lr_schedule == "cosine")
    np.testing.assert_allclose(as_one(model), expected, atol=1e-5, rtol=1e-5)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert (result.steps, result.samples) == (3 * math.ceil(SAMPLES / together), 3 * SAMPLES)


def test_every_epoch_is_a_new_shuffle_of_all_samples():
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


def trained_bytes(global_seed=0, **options) -> bytes:
    model = dropout_net()
    torch.manual_seed(global_seed)
    before = (torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled())
    run(model, data(), epochs=3, **options)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == before[1:]
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


def test_seeds_alone_fix_the_weights_byte_for_byte():
    same = trained_bytes(seed=5)
    assert trained_bytes(seed=5, global_seed=99) == same
    assert trained_bytes(seed=6) != same
    assert trained_bytes(seed=5, order_seed=10) != same


def test_fit_leaves_training_mode_without_gradients():
    model = dropout_net().eval()
    run(model, data())
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
def test_only_batch_norm_skips_a_last_batch_of_one(net, samples, batch_size, steps, seen):
    result = run(net(), data(samples), batch_size=batch_size)
    assert (result.steps, result.samples) == (steps, seen)


def test_a_skipped_batch_is_left_out_of_an_accumulated_step():
    result = run(norm_net(), data(9), batch_size=4, accumulate=3)
    assert (result.steps, result.samples) == (1, 8)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_one_non_finite_value_is_found_and_large_ones_pass(number):
    large = torch.full((2, 3), 3e38)  # of which the sum is infinite
    assert all_finite([torch.zeros(4), large])
    assert not all_finite([torch.zeros(4), torch.tensor([math.inf, 1.0, number])])


def test_divergence_names_the_epoch():
    def nan_from_the_fourth_step(model, x, y):
        calls.append(1)
        return supervised(model, x, y) * (math.nan if len(calls) > 3 else 1.0)

    calls: list[int] = []
    message = r"training loss became nan in epoch 2; a lower training\.lr may help"
    with pytest.raises(TrainingDiverged, match=message):
        run(linear(), data(), loss=nan_from_the_fourth_step, epochs=3)
    assert len(calls) == 6


def test_divergence_in_the_last_step_is_noticed():
    def finite_loss_infinite_gradient(model, x, y):
        return (model(x) * 0.0).abs().sqrt().sum()

    with pytest.raises(TrainingDiverged, match="weights stopped being finite in epoch 1"):
        run(linear(), data(), loss=finite_loss_infinite_gradient, batch_size=SAMPLES)


def test_zero_epochs_change_nothing():
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


class Rules:
    """Rules that ask for nothing, and write down their calls."""

    def __init__(self, parameters) -> None:
        self.parameters = list(parameters)
        self.calls = []

    def before_step(self) -> None:
        self.calls.append("before_step")

    def penalty(self, batch, loss) -> torch.Tensor | None:
        self.calls.append(f"penalty {len(batch[0])}")
        return None

    def after_backward(self) -> None:
        self.calls.append("after_backward")

    def after_step(self) -> None:
        self.calls.append("after_step")

    def after_epoch(self) -> None:
        self.calls.append("after_epoch")

    def before_evaluation(self) -> None:
        self.calls.append("before_evaluation")


def test_rules_are_called_for_every_batch_and_every_step():
    model = linear()
    rules = Rules(model.parameters())
    held_out = EarlyStopping(data(), cross_entropy, patience=9)
    run(model, data(), batch_size=4, accumulate=2, rules=rules, early_stopping=held_out)
    assert rules.calls == [
        "before_evaluation",
        *("before_step", "penalty 4", "before_step", "penalty 4", "after_backward", "after_step"),
        *("before_step", "penalty 3", "after_backward", "after_step"),
        "after_epoch",
        "before_evaluation",
    ]


class Decays(Rules):
    """Rules that pull at the weights and, a little, at the batch's outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters())
        self._model = model

    def penalty(self, batch, loss) -> torch.Tensor:
        pull = sum(parameter.square().sum() for parameter in self.parameters)
        return 0.1 * pull + 0.1 * self._model(batch[0]).square().mean()


def test_penalty_correction_and_clipping_apply_once_per_step():
    spec = OptimizerSpec("sgd", 0.1, clip_norm=0.5)
    models = [linear(), linear()]
    for model, batch_size, accumulate in zip(models, (6, 3), (1, 2), strict=True):
        correction = [torch.full_like(parameter, 0.3) for parameter in model.parameters()]
        run(
            model, data(), spec, epochs=2, batch_size=batch_size, accumulate=accumulate,
            rules=Decays(model), correction=correction,
        )  # fmt: skip
    np.testing.assert_allclose(as_one(models[0]), as_one(models[1]), atol=1e-6)


def test_a_step_needs_a_batch():
    with pytest.raises(ValueError, match="accumulate must be ≥ 1, got 0"):
        job(linear(), data(), accumulate=0)


def test_a_parameter_may_get_its_first_gradient_late():
    model, steps = linear(), []

    def loss(model, x, y):
        steps.append(1)
        return cross_entropy(model(x) if len(steps) > 1 else x @ model.weight.T, y)

    bias = model.bias.detach().clone()
    run(model, data(), OptimizerSpec("sgd", 0.1, momentum=0.9), loss=loss)
    assert len(steps) == 3 and not torch.equal(model.bias, bias)


class KeepsOneChannel(Rules):
    """Rules that leave the weights of one input channel a gradient, laid out channels first."""

    def after_backward(self) -> None:
        (weight,) = self.parameters
        allowed = torch.zeros(weight.shape)
        allowed[:, 1] = 1.0
        weight.grad = (weight.grad.contiguous() * allowed).contiguous()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_returned_by_rules_reaches_its_weights(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    model = prepare_model(model, "cpu")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, 3, 5, 5, generator=generator)
    y = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    before = model[0].weight.detach().clone()
    rules = KeepsOneChannel([model[0].weight])
    run(model, (x, y), OptimizerSpec(name, 0.1), batch_size=SAMPLES, rules=rules)
    changed = (model[0].weight != before).any(dim=0).any(dim=-1).any(dim=-1)
    assert changed.tolist() == [False, True, False]
