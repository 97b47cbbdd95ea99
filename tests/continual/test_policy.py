"""The consolidation policy against NumPy, and in its limits."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from small_learning import fit_task, guide, learn, small_stream, small_units, start

from fedkd.continual.baselines.baselines import Naive
from fedkd.continual.consolidation.columns import allowed_weights, unit_columns
from fedkd.continual.consolidation.policy import Policy, PolicyState, proximal
from fedkd.errors import UserError
from fedkd.models.zoo.cnn import cnn
from fedkd.models.zoo.mlp import mlp
from fedkd.randomness import seeded_torch
from fedkd.training.optimizer import OptimizerSpec

ADAM = OptimizerSpec("adam", 0.01)
MOMENTUM = OptimizerSpec("sgd", 0.1, momentum=0.9, weight_decay=0.01)


def network(outputs=6):
    with seeded_torch(4):
        return mlp((6,), outputs, hidden=(9, 6)).double()


def stream(tasks=3, **options):
    return [(x.double(), y) for x, y in small_stream(tasks, **options)]


def weights(net) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in net.parameters()])


@pytest.mark.parametrize("optimizer", [OptimizerSpec("sgd", 0.1), MOMENTUM, ADAM])
@pytest.mark.parametrize("groups", ["layers", "importance"])
def test_no_strength_is_naive_bit_for_bit(groups, optimizer):
    nets = [network(), network()]
    for net, learner in zip(nets, (Policy(groups=groups, strength=0), Naive()), strict=True):
        learn(learner, net, stream(), optimizer=optimizer)
    assert np.array_equal(*map(weights, nets))


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM])
def test_frozen_layers_stay_bit_for_bit_in_training_and_distillation(optimizer):
    data, net = stream(2), network(4)
    learning = start(Policy(strength="frozen"), net, data)
    fit_task(learning, data, 0, optimizer=optimizer)
    learning.end()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    fit_task(learning, data, 1, optimizer=optimizer)
    targets = (data[1][0], torch.randn(24, 4, dtype=torch.float64))
    guide(learning, targets, lambda model, x, t: (model(x) - t[:, :2]).square().mean(), optimizer=optimizer,
          batch_size=8, epochs=1, generator=torch.Generator().manual_seed(0), seed=0)  # fmt: skip
    for name, p in net.named_parameters():
        old = p[:2] if name.startswith("head") else p
        assert torch.equal(old, before[name][:2] if name.startswith("head") else before[name])
    assert not torch.equal(net.head.weight[2:], before["head.weight"][2:])


def test_a_huge_strength_is_frozen_within_1e_9():
    nets = [network(4), network(4)]
    for net, strength in zip(nets, (1e12, "frozen"), strict=True):
        learn(Policy(strength=strength), net, stream(2), optimizer=OptimizerSpec("sgd", 0.1))
    np.testing.assert_allclose(*map(weights, nets), atol=1e-9)


def test_the_fixed_point_of_a_quadratic_loss_is_the_penalised_minimiser():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((5, 5))
    curvature, minimum = root @ root.T + np.eye(5), rng.standard_normal(5)
    strength, target = rng.uniform(0, 50, 5), rng.standard_normal(5)
    expected = np.linalg.solve(curvature + np.diag(strength), curvature @ minimum + strength * target)
    theta, rate = torch.zeros(5, dtype=torch.float64), 0.01
    b, pull = torch.tensor(strength), torch.tensor(strength * target)
    for _ in range(20_000):
        gradient = torch.tensor(curvature) @ (theta - torch.tensor(minimum))
        theta = proximal(theta - rate * gradient, rate, b, pull)
    np.testing.assert_allclose(theta.numpy(), expected, atol=1e-10)


def test_a_step_is_that_of_the_formula_with_the_optimisers_rate():
    data, net = stream(2), network(4)
    learning = start(Policy(strength=3.0, head_strength=7.0), net, data)
    fit_task(learning, data, 0)
    learning.end()
    anchor = {name: p.detach().numpy().copy() for name, p in net.named_parameters()}
    plain = deepcopy(net)
    for learner, own in ((learning, net), (start(Naive(), plain, data), plain)):
        learner.enter(1)
        fit_task(learner, data, 1, epochs=1, batch_size=24)
        assert own is learner.context.network
    for name, p in plain.named_parameters():
        b = np.full(p.shape, 3.0)
        if name.startswith("head"):
            b[:2], b[2:] = 7.0, 0.0
        expected = (p.detach().numpy() + 0.1 * b * anchor[name]) / (1 + 0.1 * b)
        np.testing.assert_allclose(dict(net.named_parameters())[name].detach().numpy(), expected, atol=1e-12)


def anchors(learner: Policy, values, order, tasks: int = 3):
    """Return Σ b_j and Σ b_j θ*_j of tasks that end in some order with given weights."""
    net = network(2 * tasks)
    learning = start(learner, net, stream(tasks))
    for task in order:
        learning.context.task = task
        with torch.no_grad():
            for p in net.parameters():
                p.fill_(values[task])
        learner.end_task(learning.context)
    return learner._anchors(learning.context)["body.1.weight"], PolicyState(learning.context)


def test_the_order_of_anchors_does_not_matter():
    learner, values = Policy(strength=2.0), (0.3, -1.1, 0.7)
    (b, pull), _ = anchors(learner, values, (0, 1, 2))
    (other_b, other_pull), _ = anchors(learner, values, (2, 0, 1))
    np.testing.assert_allclose(b, other_b, atol=1e-12)
    np.testing.assert_allclose(pull, other_pull, atol=1e-12)
    np.testing.assert_allclose((pull / b).numpy(), np.mean(values), atol=1e-12)


def test_strengths_age_and_those_of_kept_tasks_do_not():
    (b, pull), _ = anchors(Policy(strength=2.0, decay=0.5, kept=[0]), (1.0, 2.0, 3.0), (0, 1, 2))
    np.testing.assert_allclose(b.numpy(), 2 + 2 * 0.5 + 2)
    np.testing.assert_allclose(pull.numpy(), 2 * 1 + 2 * 0.5 * 2 + 2 * 3)
    (gone, _), _ = anchors(Policy(strength=2.0, decay=0.0), (1.0, 2.0, 3.0), (0, 1, 2))
    np.testing.assert_allclose(gone.numpy(), 2.0)


def test_importance_is_the_mean_squared_gradient_of_single_samples():
    data, net = stream(1, samples=6), network(2)
    learner = Policy(groups="importance", strength=5.0)
    learning = start(learner, net, data)
    learning.enter(0)
    learner.end_task(learning.context)
    squares = {name: np.zeros(p.shape) for name, p in net.named_parameters()}
    for x, y in zip(*data[0], strict=True):
        net.zero_grad()
        torch.nn.functional.cross_entropy(net(x[None])[:, :2], y[None]).backward()
        for name, p in net.named_parameters():
            squares[name] += p.grad.numpy() ** 2 / 6
    for name, (b, _) in learner._anchors(learning.context).items():
        np.testing.assert_allclose(b.numpy(), 5.0 * squares[name], atol=1e-12)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM])
def test_frozen_columns_keep_old_logits_bit_for_bit(links, optimizer):
    data, net = stream(3), network()
    learner = Policy(groups="columns", strength="frozen", links=links)
    learning = start(learner, net, data)
    inputs, told = data[0][0], []
    for task in range(3):
        fit_task(learning, data, task, optimizer=optimizer)
        learning.end()
        told.append(net(inputs)[:, 2 * task : 2 * task + 2].detach().clone())
        for old, logits in enumerate(told):
            assert torch.equal(net(inputs)[:, 2 * old : 2 * old + 2], logits)
    hidden = net.body[3].weight.detach()
    read = [
        [float(hidden[2 * i : 2 * i + 2, 3 * j : 3 * j + 3].abs().sum()) for j in range(3)] for i in range(3)
    ]
    assert all((read[i][j] > 0) == (j == i or (links and j < i)) for i in range(3) for j in range(3))


def test_columns_share_out_units_and_channels():
    with seeded_torch(0):
        net = cnn((1, 8, 8), 4)
    context = start(Policy(groups="columns"), net, stream(2), small_units(2)).context
    for name, columns in unit_columns(context).items():
        assert len(columns) == len(net.get_parameter(name))
        assert abs(int((columns == 0).sum()) - int((columns == 1).sum())) <= 1
    for name, allowed in allowed_weights(context, links=True).items():
        assert allowed.shape == net.get_parameter(name).shape


def test_wrong_policies_are_refused():
    with pytest.raises(UserError, match="must be a number") as error:
        Policy(groups="importance", strength="frozen").check(network())
    assert error.value.key == "continual.strength"
    with pytest.raises(UserError, match="needs a chain"):
        Policy(groups="columns").check(torch.nn.Bilinear(2, 2, 2))
