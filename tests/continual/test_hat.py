"""HAT: gates, steepness, gradients, and protection of old tasks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_learning import SGD, fit_task, guide, small_stream, small_units, start
from torch import nn

from fedkd.continual.learner import Step
from fedkd.continual.masks.hat import HAT, GateState
from fedkd.errors import UserError
from fedkd.models.zoo.cnn import cnn
from fedkd.models.zoo.lenet import lenet
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.randomness import seeded_torch
from fedkd.training.evaluate import predict_logits
from fedkd.training.optimizer import OptimizerSpec

MOMENTUM = OptimizerSpec("adamw", 0.05, weight_decay=0.1)


def network(outputs=6, hidden=(8, 7), **options):
    with seeded_torch(4):
        return mlp((6,), outputs, hidden=hidden, **options)


def embeddings(learning, task):
    return {name: e for name, e in learning.context.memory.items() if name.startswith(f"embeddings/{task}/")}


def decide(learning, task, seed=0):
    """Make every gate of a task 0 or 1 to the last bit, at random."""
    g = torch.Generator().manual_seed(100 * task + seed)
    with torch.no_grad():
        for e in embeddings(learning, task).values():
            e.copy_(torch.where(torch.rand(e.shape, generator=g) < 0.5, 1.0, -1.0))


# Gates ----------------------------------------------------------------------------------------------------


def test_a_gate_multiplies_its_unit():
    stream, net = small_stream(2), network()
    learning = start(HAT(steepness=3.0), net, stream)
    fit_task(learning, stream, 0)
    x = stream[0][0]
    a, b = (torch.sigmoid(3.0 * e) for e in embeddings(learning, 0).values())
    by_hand = F.relu(net.body[1](x)) * a
    by_hand = net.head(F.relu(net.body[3](by_hand)) * b)
    torch.testing.assert_close(learning.model(0).outputs(x), by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [cnn, lenet], ids=["cnn", "lenet"])
def test_a_gate_multiplies_its_channel(make):
    with seeded_torch(4):
        net = make((1, 8, 8), 4)
    stream = small_stream(1, samples=8, shape=(1, 8, 8))
    learning = start(HAT(steepness=2.0), net, stream)
    fit_task(learning, stream, 0, epochs=1)
    gates = iter(torch.sigmoid(2.0 * e) for e in embeddings(learning, 0).values())
    h = stream[0][0]
    for module in net.body:
        h = module(h)
        if isinstance(module, nn.Conv2d | nn.Linear):
            h = h * next(gates).view(-1, *[1] * (h.dim() - 2))
    torch.testing.assert_close(learning.model(0).outputs(stream[0][0]), net.head(h), rtol=1e-4, atol=1e-6)


def test_gate_steepness_grows_within_every_epoch():
    seen = []

    class Watched(HAT):
        def penalty(self, context, step):
            seen.append(self._steepness(context))
            return super().penalty(context, step)

    stream = small_stream(1, samples=26)
    learning = start(Watched(steepness=10.0), network(), stream)
    fit_task(learning, stream, 0, epochs=2)
    course = [0.1 + 9.9 * b / 3 for b in range(4)]
    assert seen == pytest.approx(course * 2)
    assert learning.learner._steepness(learning.context) == 10.0
    fit_task(learning, stream, 0, first=2, epochs=1, batch_size=26)
    assert seen[8:] == [10.0], "one batch is trained as it is asked"


# A step ---------------------------------------------------------------------------------------------------


def test_gradients_equal_the_formula():
    stream, net = small_stream(2), network(4)
    learning = start(HAT(steepness=5.0), net, stream)
    fit_task(learning, stream, 0)
    learning.end()
    fit_task(learning, stream, 1, epochs=1)
    context, learner = learning.context, learning.learner
    g = torch.Generator().manual_seed(3)
    gradients = {name: torch.randn(t.shape, generator=g) for name, t in learner.trainable(context).items()}
    context.position = 0.25
    found = learner.project(context, {name: values.clone() for name, values in gradients.items()})

    a, b = (1 / (1 + np.exp(-5.0 * e.detach().numpy())) for e in embeddings(learning, 0).values())
    np.testing.assert_allclose(GateState(context).used["body.1"], a, rtol=1e-5)
    head = np.array([1.0, 1.0, 0.0, 0.0])  # the units of task 0
    factors = {
        "body.1.weight": 1 - np.minimum(a[:, None], np.ones((1, 6))),
        "body.1.bias": 1 - a,
        "body.3.weight": 1 - np.minimum(b[:, None], a[None]),
        "body.3.bias": 1 - b,
        "head.weight": 1 - np.minimum(head[:, None], b[None]),
        "head.bias": 1 - head,
    }
    s = 0.2 + 4.8 * 0.25
    for name, e in embeddings(learning, 1).items():
        e = e.detach().numpy().astype(np.float64)
        factors[name] = 5.0 * (np.cosh(s * e) + 1) / (s * (np.cosh(e) + 1))
    assert factors.keys() == found.keys()
    for name, factor in factors.items():
        np.testing.assert_allclose(found[name], factor * gradients[name].numpy(), rtol=1e-4, atol=1e-6)
    assert learner.project_update(context, dict(gradients)).keys() == {
        n for n in gradients if "embed" not in n
    }


def test_the_penalty_equals_the_formula():
    stream = small_stream(2)
    learning = start(HAT(steepness=5.0, compression=0.3), network(), stream)
    fit_task(learning, stream, 0)
    learning.end()
    fit_task(learning, stream, 1, epochs=1)
    x, model = stream[1][0], learning.model()
    value = learning.learner.penalty(learning.context, Step(x, model, model(x).sum()))
    old, new = (
        np.concatenate(
            [1 / (1 + np.exp(-5.0 * e.detach().numpy())) for e in embeddings(learning, t).values()]
        )
        for t in (0, 1)
    )
    assert value.item() == pytest.approx(0.3 * (new * (1 - old)).sum() / (1 - old).sum(), rel=1e-5)
    learning.context.memory.update(
        {name: torch.ones_like(v) for name, v in learning.context.memory.items() if name.startswith("used/")}
    )
    full = learning.learner.penalty(learning.context, Step(x, model, model(x).sum()))
    assert full.item() == 0.0, "nothing is left to be saved"


def test_embeddings_stay_within_six():
    stream = small_stream(1)
    learning = start(HAT(), network(), stream)
    fit_task(learning, stream, 0, epochs=3, optimizer=OptimizerSpec("sgd", 100.0))
    assert max(float(e.detach().abs().max()) for e in embeddings(learning, 0).values()) == 6.0


# What is kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True], ids=["own heads", "shared head"])
@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM], ids=["sgd", "adamw"])
def test_binary_gates_keep_old_tasks_to_the_bit(optimizer, shared):
    stream = small_stream(3, samples=20)
    learning = start(HAT(), network(2 if shared else 6), stream, small_units(3, shared=shared))
    expected = {}
    for task, (x, _) in enumerate(stream):
        fit_task(learning, stream, task, optimizer=optimizer)
        decide(learning, task)
        learning.end()
        expected[task] = predict_logits(learning.model(task), x)
        guide(
            learning,
            (x,),
            lambda model, x: (model(x) - 1.0).square().mean(),
            optimizer=optimizer,
            epochs=1,
            batch_size=8,
            seed=1,
            generator=torch.Generator().manual_seed(1),
        )
        for old in range(task):
            assert torch.equal(predict_logits(learning.model(old), stream[old][0]), expected[old])
    first, last = (torch.cat([e.sign() for e in embeddings(learning, t).values()]) for t in (0, 2))
    assert not torch.equal(first, last)


def test_open_gates_freeze_all_weights_and_closed_ones_none():
    stream, net = small_stream(2), network(4)
    for gate, held in ((1.0, True), (-1.0, False)):
        learning = start(HAT(compression=0.0), net, stream)
        fit_task(learning, stream, 0)
        for e in embeddings(learning, 0).values():
            e.data.fill_(gate)
        learning.end()
        before = [p.detach().clone() for p in net.body.parameters()]
        learning.enter(1)
        learning._enter_phase("weights")
        for e in embeddings(learning, 1).values():
            e.data.fill_(1.0)
        fit_task(learning, stream, 1)
        moved = [not torch.equal(p, q) for p, q in zip(net.body.parameters(), before, strict=True)]
        assert not any(moved) if held else all(moved)


def test_reported_metrics_match_the_gates():
    stream = small_stream(2)
    learning = start(HAT(), network(), stream)
    learning.enter(0)
    learning.end()
    assert learning.learner.report(learning.context) == {} and GateState(learning.context).taught is None
    fit_task(learning, stream, 1)
    decide(learning, 1)
    learning.end()
    opened = torch.cat(list(embeddings(learning, 1).values())) > 0
    assert learning.learner.report(learning.context) == {
        "used_units": pytest.approx(float(opened.double().mean())),
        "undecided_gates": 0.0,
    }


# What is refused ------------------------------------------------------------------------------------------


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.head(x + self.body(x))


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (lambda: resnet8((1, 8, 8), 4), "'body.1' is a GroupNorm"),
        (Skips, "Skips has its own forward pass"),
        (lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 6)), "'1' is a BatchNorm1d"),
        (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)), "'1' is a Tanh"),
        (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU()), "hidden units, but this model has none"),
    ],
    ids=["resnet8", "skips", "batchnorm", "tanh", "flat"],
)
def test_networks_without_gateable_units_are_refused(net, words):
    with pytest.raises(UserError, match=words):
        start(HAT(), net(), small_stream(1))
