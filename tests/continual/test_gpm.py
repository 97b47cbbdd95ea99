"""GPM against its formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_learning import fit_task, learn, small_stream, small_units, start
from torch import nn

from fedkd.continual.baselines.baselines import Naive
from fedkd.continual.learner import LearnerTraits
from fedkd.continual.registry import make_learner
from fedkd.continual.subspace.gpm import GPM
from fedkd.continual.subspace.layer_memory import BASIS
from fedkd.errors import UserError
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.training.evaluate import predict_logits
from fedkd.training.optimizer import OptimizerSpec

SHARED3 = small_units(3, shared=True)
OPTIMIZERS = [
    OptimizerSpec("sgd", 0.1),
    OptimizerSpec("sgd", 0.05, momentum=0.9, weight_decay=0.01),
    OptimizerSpec("adam", 0.01, weight_decay=0.01),
    OptimizerSpec("adamw", 0.01, weight_decay=0.1),
]


def network(outputs=2, *, seed=0, inputs=12, hidden=(9, 8), bias=False):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mlp((inputs,), outputs, hidden=list(hidden), bias=bias)


def flat_stream(tasks, *, rank=3, inputs=12, seed=0):
    """Return tasks whose samples lie in a subspace of `rank` dimensions each."""
    g = torch.Generator().manual_seed(seed)
    stream = small_stream(tasks, shape=(rank,), seed=seed)
    return [(x @ torch.randn(rank, inputs, generator=g), y) for x, y in stream]


def weights_of(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


# The basis ------------------------------------------------------------------------------------------------


def by_hand(inputs, basis, share):
    """Return the extended basis, the slow way: one direction after another from the moments' eigenvectors."""
    total = (inputs**2).sum()
    while basis.shape[1] < len(inputs):
        explained = ((basis.T @ inputs) ** 2).sum()
        if explained >= share * total:
            break
        left = inputs - basis @ (basis.T @ inputs)
        _, vectors = np.linalg.eigh(left @ left.T)
        basis = np.concatenate([basis, vectors[:, -1:]], axis=1)
    return basis


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_bases_equal_a_plain_svd(threshold):
    stream = small_stream(3, shape=(12,))
    net = network()
    learning = start(GPM(threshold=threshold, threshold_increment=0.003), net, stream, SHARED3)
    bases = {name: np.zeros((layer.fan_in, 0)) for name, layer in learning.context.layers.items()}
    for task, (x, _) in enumerate(stream):
        fit_task(learning, stream, task)
        learning.end()
        h1 = F.relu(net.body[1](x))
        inputs = {"body.1": x, "body.3": h1, "head": F.relu(net.body[3](h1))}
        for name, basis in bases.items():
            columns = inputs[name].detach().double().numpy().T
            bases[name] = by_hand(columns, basis, threshold + 0.003 * task)
            ours = learning.context.memory[BASIS + name].double().numpy()
            assert ours.shape == bases[name].shape
            np.testing.assert_allclose(ours @ ours.T, bases[name] @ bases[name].T, atol=1e-4)
            assert learning.learner.report(learning.context)[f"rank/{name}"] == ours.shape[1]
    assert bases["body.1"].shape[1] > 1


def test_basis_columns_stay_orthonormal_over_many_tasks():
    learning = learn(GPM(threshold=0.9), network(), small_stream(8, shape=(12,)), small_units(8, shared=True))
    for name in learning.context.layers:
        basis = learning.context.memory[BASIS + name]
        assert basis.dtype == torch.float32 and basis.is_contiguous()
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-5, rtol=0)


def test_thresholds_may_differ_by_layer():
    stream = small_stream(1, shape=(12,))
    learning = start(GPM(threshold=[0.2, 1.0, 0.6]), network(), stream, [(0, 1)])
    fit_task(learning, stream, 0)
    learning.end()
    report = learning.learner.report(learning.context)
    x = stream[0][0].double().numpy()
    assert report["rank/body.1"] == by_hand(x.T, np.zeros((12, 0)), 0.2).shape[1]
    assert report["rank/body.3"] > report["rank/head"] >= 1
    assert report["protected_share/body.1"] == report["rank/body.1"] / 12
    with pytest.raises(
        UserError, match=r"one for each of 3 layers \(body.1, body.3, head\), got 2"
    ) as caught:
        start(GPM(threshold=[0.9, 0.9]), network(), stream, [(0, 1)])
    assert caught.value.key == "continual.threshold"
    start(GPM(threshold=[0.9, 0.9]), network(4), small_stream(2, shape=(12,)))  # own heads are not projected


# What a step may do ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: f"{o.name}{o.momentum}")
@pytest.mark.parametrize("rank", [3, 7])  # projected with the basis, and with its complement
def test_outputs_for_old_inputs_stay(optimizer, rank):
    stream = flat_stream(2, rank=rank)
    net = network()
    learning = start(GPM(threshold=1.0), net, stream, small_units(2, shared=True))
    fit_task(learning, stream, 0, optimizer=optimizer)
    learning.end()
    x = stream[0][0]
    before, weights = predict_logits(learning.model(0), x), weights_of(net)
    fit_task(learning, stream, 1, optimizer=optimizer, epochs=4)
    change = net.body[1].weight - weights["body.1.weight"]
    assert change.abs().max() > 1e-3  # it does learn
    assert (x @ change.T).abs().max() < 1e-5
    torch.testing.assert_close(predict_logits(learning.model(0), x), before, atol=2e-5, rtol=1e-5)


def test_weight_decay_forgets_without_projected_changes():
    """The promise above is not kept for nothing."""

    class Unconfined(GPM):
        traits = LearnerTraits(task_statistics=True)

    stream = flat_stream(2)
    net = network()
    learning = start(Unconfined(threshold=1.0), net, stream, small_units(2, shared=True))
    fit_task(learning, stream, 0)
    learning.end()
    before = net.body[1].weight.detach().clone()
    fit_task(learning, stream, 1, optimizer=OPTIMIZERS[1])
    assert (stream[0][0] @ (net.body[1].weight - before).T).abs().max() > 1e-3


def test_a_step_equals_the_projected_step_of_the_formula():
    stream = small_stream(2, shape=(12,))
    net = network()
    learning = start(GPM(threshold=0.8), net, stream, small_units(2, shared=True), batch_size=24)
    fit_task(learning, stream, 0)
    learning.end()
    before = weights_of(net)
    F.cross_entropy(net(stream[1][0]), stream[1][1]).backward()
    gradients = {name: p.grad.clone().double().numpy() for name, p in net.named_parameters()}
    fit_task(learning, stream, 1, epochs=1, batch_size=24)
    for name, old in before.items():
        b = learning.context.memory[BASIS + name.removesuffix(".weight")].double().numpy()
        d = gradients[name]
        expected = old.double().numpy() - 0.1 * (d - d @ b @ b.T)
        np.testing.assert_allclose(net.get_parameter(name).detach(), expected, atol=1e-6)


def test_convolutions_keep_their_outputs_for_old_patches():
    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3),
            nn.Flatten(),
            nn.Linear(16, 2),
        )
    # Old images are of one pattern in many strengths, so that their patches span little.
    pattern = torch.randn(1, 2, 8, 8, generator=g)
    y = torch.arange(24) % 2
    stream = [
        (pattern * (1 + y + torch.rand(24, generator=g)).view(-1, 1, 1, 1), y),
        (torch.randn(24, 2, 8, 8, generator=g), y),
    ]
    learning = start(GPM(threshold=1.0), net, stream, small_units(2, shared=True))
    fit_task(learning, stream, 0, optimizer=OptimizerSpec("adam", 0.01))
    learning.end()
    assert learning.learner.report(learning.context)["rank/0"] == 16  # as many patches as positions
    before = net[0].weight.detach().clone(), predict_logits(learning.model(0), stream[0][0])
    fit_task(learning, stream, 1, epochs=4, optimizer=OptimizerSpec("adam", 0.01, weight_decay=0.01))
    assert (net[0].weight - before[0]).abs().max() > 1e-2
    torch.testing.assert_close(
        predict_logits(learning.model(0), stream[0][0]), before[1], atol=2e-5, rtol=1e-5
    )


def test_a_higher_threshold_forgets_less():
    stream = small_stream(2, shape=(12,), samples=60, seed=3)
    forgotten = []
    for threshold in (0.3, 0.9, 0.999):
        net = network()
        learning = start(GPM(threshold=threshold), net, stream, small_units(2, shared=True))
        fit_task(learning, stream, 0, epochs=4)
        learning.end()
        before = predict_logits(learning.model(0), stream[0][0])
        fit_task(learning, stream, 1, epochs=4)
        forgotten.append(float((predict_logits(learning.model(0), stream[0][0]) - before).norm()))
    assert forgotten[0] > 1.5 * forgotten[1] > 3 * forgotten[2]


# Heads, one-dimensional parameters, statistics --------------------------------------------------------------


def test_each_task_trains_its_own_head_only():
    stream = small_stream(3, shape=(12,))
    net = network(6, bias=True)
    learning = start(GPM(threshold=0.9), net, stream)
    fit_task(learning, stream, 0)
    learning.end()
    assert "head" not in {name.removeprefix(BASIS) for name in learning.context.memory}
    before = weights_of(net)
    fit_task(learning, stream, 1, optimizer=OPTIMIZERS[1])
    for name in ("head.weight", "head.bias"):
        now = net.get_parameter(name).detach()
        assert torch.equal(now[:2], before[name][:2]) and torch.equal(now[4:], before[name][4:])
        assert not torch.equal(now[2:4], before[name][2:4])


def test_biases_and_normalisation_freeze_after_the_first_task():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = resnet8((1, 8, 8), 2, norm="batch")
    stream = small_stream(2, shape=(1, 8, 8))
    learning = start(GPM(threshold=0.8, samples=8), net, stream, small_units(2, shared=True))
    fit_task(learning, stream, 0)
    vectors = {name: p.detach().clone() for name, p in net.named_parameters() if p.dim() == 1}
    learning.end()
    statistics = predict_logits(learning.model(0), stream[0][0])
    mean = net.body[1].running_mean.clone()
    fit_task(learning, stream, 1, optimizer=OPTIMIZERS[2])
    assert all(torch.equal(net.get_parameter(name), old) for name, old in vectors.items())
    assert not torch.equal(net.body[1].running_mean, mean)
    assert torch.equal(learning.context.memory["statistics/0/body.1.running_mean"], mean)
    assert predict_logits(learning.model(0), stream[0][0]).shape == statistics.shape


# Limits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: f"{o.name}{o.momentum}")
@pytest.mark.parametrize("own", [False, True])
def test_the_first_task_equals_plain_training_to_the_bit(optimizer, own):
    stream = small_stream(2, shape=(12,))
    nets = [network(4, bias=True), network(4, bias=True)]
    for learner, net in zip((GPM(), Naive()), nets, strict=True):
        units = None if own else [(0, 1, 2, 3)] * 2
        fit_task(start(learner, net, stream, units), stream, 0, optimizer=optimizer)
    for (name, ours), plain in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(ours, plain), name


def test_a_fully_protected_network_does_not_change():
    stream = small_stream(2, shape=(4,), samples=60)
    net = network(inputs=4, hidden=(3,))
    learning = start(GPM(threshold=1.0), net, stream, small_units(2, shared=True))
    fit_task(learning, stream, 0)
    learning.end()
    assert learning.learner.report(learning.context)["protected_share/body.1"] == 1.0
    before = weights_of(net)
    fit_task(learning, stream, 1, optimizer=OPTIMIZERS[2])
    assert torch.equal(net.body[1].weight, before["body.1.weight"])


def test_an_untrained_or_empty_task_protects_nothing():
    stream = small_stream(3, shape=(12,))
    stream[1] = (stream[1][0][:0], stream[1][1][:0])
    learning = start(GPM(), network(bias=True), stream, SHARED3)
    learning.enter(1)  # task 0 was missed
    learning.end()
    assert not learning.context.memory
    fit_task(learning, stream, 2)
    before = learning.context.network.body[1].bias.clone()
    assert not learning.learner.protects(learning.context)
    fit_task(learning, stream, 2)
    assert not torch.equal(learning.context.network.body[1].bias, before)  # the first task that is trained


def test_stored_bytes_are_those_of_the_bases():
    stream = small_stream(3, shape=(12,))
    learning = learn(GPM(threshold=0.95), network(), stream, SHARED3)
    assert set(learning.context.memory) == {BASIS + name for name in learning.context.layers}
    columns = sum(n * learning.learner.report(learning.context)[f"rank/{name}"]
                  for name, n in (("body.1", 12), ("body.3", 9), ("head", 8)))  # fmt: skip
    assert learning.context.stored_bytes() == 4 * columns


def test_wrong_hyperparameters_are_refused():
    learner = make_learner("gpm", {"threshold": [0.95, 0.99, 0.99], "samples": 125})
    assert (learner.threshold, learner.samples) == ([0.95, 0.99, 0.99], 125)
    for wrong in ({"threshold": 1.1}, {"threshold": [0.9, 0]}, {"samples": 0}, {"threshold_increment": -1}):
        with pytest.raises(UserError) as caught:
            make_learner("gpm", wrong)
        assert caught.value.key.startswith(f"continual.{next(iter(wrong))}")
