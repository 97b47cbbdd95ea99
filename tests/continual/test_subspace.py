"""Inputs of layers, their principal directions, and projections, against float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_learning import small_stream, start
from torch import nn

from fedkd.continual.baselines.baselines import Naive
from fedkd.continual.subspace.bases import (
    basis_energies,
    check_layers,
    count_leading_energies,
    draw,
    heads_are_disjoint,
    layer_inputs,
    mean_gradients,
    residual_directions,
)
from fedkd.errors import UserError
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def orthonormal(n, r, seed=0):
    return torch.linalg.qr(torch.randn(n, r, generator=g(seed)).double())[0]


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mlp((6,), 4, hidden=[5, 7])


# Directions -----------------------------------------------------------------------------------------------


def test_directions_are_singular_vectors_of_the_residual():
    basis, inputs = orthonormal(8, 2), torch.randn(8, 30, generator=g(1)).double()
    directions, energies = residual_directions(inputs, basis)
    b, r = basis.numpy(), inputs.numpy()
    values, vectors = np.linalg.eigh((np.eye(8) - b @ b.T) @ r @ r.T @ (np.eye(8) - b @ b.T))
    assert len(energies) == 6  # the other two are in the basis
    np.testing.assert_allclose(energies, values[::-1][:6], rtol=1e-10)
    along = np.abs((directions.numpy() * vectors[:, ::-1][:, :6]).sum(axis=0))
    np.testing.assert_allclose(along, 1.0, atol=1e-10)  # the same but for their signs
    # All energy is either along the basis or along a new direction.
    assert float(energies.sum() + basis_energies(inputs, basis).sum()) == pytest.approx((r**2).sum())
    np.testing.assert_allclose(basis_energies(inputs, basis), np.diag(b.T @ r @ r.T @ b), rtol=1e-12)


def test_float32_rounding_of_a_basis_adds_no_directions():
    span = orthonormal(40, 3)
    inputs = span @ torch.randn(3, 50, generator=g(1)).double()
    directions, energies = residual_directions(inputs, span.float().double())
    assert directions.shape == (40, 0)
    assert len(energies) == 0


def test_weak_directions_are_orthogonal_to_a_rounded_basis():
    span = orthonormal(40, 6)
    strength = torch.tensor([1.0, 1.0, 1.0, 1e-5, 1e-5, 1e-5]).double()
    inputs = (span * strength) @ torch.randn(6, 50, generator=g(1)).double()
    rounded = span[:, :3].float().double()
    directions, _ = residual_directions(inputs, rounded)
    assert directions.shape == (40, 3)
    # Far below the 1e-7 that the basis was rounded by; the residual alone is 3e-4 off.
    assert (rounded.T @ directions).abs().max() < 1e-9
    torch.testing.assert_close(directions.T @ directions, torch.eye(3).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("strength", [[1.0, 1.0, 1.0], [3.0, 1.0, 1.0], [1.0, 1e-3, 1e-4]])
def test_directions_ignore_order_and_repetition_of_inputs(strength):
    """Inputs span three dimensions of nine, some of them equally."""
    span = orthonormal(9, 3, seed=2) * torch.tensor(strength).double()
    inputs, basis = span @ orthonormal(12, 3, seed=3).T, orthonormal(9, 1, seed=4)
    span, basis = span - basis @ (basis.T @ span), basis[:, : int(strength[0] == 3.0)]
    directions, energies = residual_directions(inputs, basis)
    assert directions.shape == (9, 3)
    for seed in range(4):
        order = torch.randperm(12, generator=g(seed))
        moments = torch.linalg.eigh(inputs @ inputs.T)
        for same, times in (
            (inputs[:, order], 1),
            (torch.cat([inputs[:, order], inputs], dim=1), 2),
            (torch.cat([inputs[:, order], torch.zeros(9, 2).double()], dim=1), 1),
            (moments[1] * moments[0].clamp(min=0.0).sqrt(), 1),
        ):
            found, their_energies = residual_directions(same, basis)
            torch.testing.assert_close(found, directions, atol=1e-7, rtol=0)
            torch.testing.assert_close(their_energies, times * energies)


def test_the_fewest_directions_that_reach_the_threshold_are_taken():
    energies = torch.tensor([4.0, 3.0, 2.0, 1.0]).double()
    assert [count_leading_energies(energies, goal) for goal in (-1, 0, 0.1, 4, 4.1, 7, 9.5, 10)] == [
        0, 0, 1, 1, 2, 2, 4, 4,
    ]  # fmt: skip
    assert count_leading_energies(energies, 10.0 + 1e-9) == 4  # rounding cannot ask for more than there are
    assert count_leading_energies(energies[:0], 1.0) == 0


# Inputs and gradients of layers ---------------------------------------------------------------------------


def test_linear_inputs_keep_their_columns_or_second_moments():
    net = network()
    learning = start(Naive(), net, small_stream(1), units=[(0, 1, 2, 3)])
    x = torch.randn(9, 6, generator=g(3))
    found = layer_inputs(learning.context, learning.context.layers, x, {})
    hidden = F.relu(net.body[1](x))
    expected = {"body.1": x, "body.3": hidden, "head": net.features(x)}
    for name, inputs in found.items():
        columns = expected[name].detach().double().numpy().T
        assert inputs.dtype == torch.float64
        assert inputs.shape[1] <= 2 * len(inputs)  # 9 samples are more than 5 rows, and not many more than 7
        np.testing.assert_allclose(inputs @ inputs.T, columns @ columns.T, atol=1e-6)
    few = layer_inputs(learning.context, learning.context.layers, x[:4], {})
    np.testing.assert_array_equal(few["body.1"], x[:4].double().numpy().T)


def test_convolution_inputs_are_patches():
    conv = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(8, 2)
    )
    learning = start(Naive(), conv, small_stream(1, shape=(2, 5, 5)), units=[(0, 1)])
    x = torch.randn(4, 2, 5, 5, generator=g(3))
    other = torch.randn(3, 2, 3, 3, generator=g(4))
    found = layer_inputs(learning.context, learning.context.layers, x, {"0.weight": other})
    hidden = F.relu(F.conv2d(x, other, conv[0].bias, stride=2, padding=1)).detach().numpy()
    patches = np.stack(  # [n, samples · positions], one patch after another
        [
            hidden[sample, :, i : i + 2, j : j + 2].ravel()
            for sample in range(4)
            for i in range(2)
            for j in range(2)
        ],
        axis=1,
    ).astype(np.float64)
    np.testing.assert_allclose(found["2"] @ found["2"].T, patches @ patches.T, atol=1e-5)
    assert not conv[0]._forward_pre_hooks


def test_the_mean_gradient_is_of_the_tasks_own_cross_entropy():
    net = network()
    learning = start(Naive(), net, small_stream(2), units=[(0, 1), (3, 1)])
    learning.enter(1)
    x = torch.randn(300, 6, generator=g(3))  # more than one forward pass takes
    y = torch.arange(300) % 2
    context = learning.context
    found = mean_gradients(context, context.layers, x, y, dict)
    F.cross_entropy(net(x)[:, [3, 1]], y).backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, context.layers[name].module.weight.grad, atol=1e-6, rtol=1e-4)
    assert mean_gradients(context, context.layers, x[:0], y[:0], dict) == {}


def test_the_mean_gradient_leaves_the_network_unchanged():
    net = resnet8((1, 8, 8), 2, norm="batch")
    net.body[3].conv1.eval()
    learning = start(Naive(), net, small_stream(1, shape=(1, 8, 8)))
    learning.enter(0)
    x, y = small_stream(1, shape=(1, 8, 8))[0]
    before = {name: values.clone() for name, values in net.state_dict().items()}
    found = mean_gradients(learning.context, learning.context.layers, x, y, dict)
    assert all(torch.equal(before[name], values) for name, values in net.state_dict().items())
    assert net.training and not net.body[3].conv1.training
    net.train()
    F.cross_entropy(net(x), y).backward()
    torch.testing.assert_close(found["body.0"], net.body[0].weight.grad.reshape(16, 9))


def test_sample_draws_are_distinct_and_repeatable():
    learning = start(Naive(), network(), small_stream(2), units=[(0, 1), (2, 3)])
    learning.enter(0)
    x, y = draw(learning.context, "a", 10)
    assert len(x.unique(dim=0)) == len(y) == 10
    assert torch.equal(x, draw(learning.context, "a", 10)[0])
    assert not torch.equal(x, draw(learning.context, "b", 10)[0])
    assert len(draw(learning.context, "a", 1000)[0]) == 24


# What is known of a network -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "own"),
    [
        ([(0, 1), (2, 3)], True),
        ([(0, 1), (0, 1)], False),
        ([(0, 1), (1, 2)], False),
        ([(0,), (1, 2, 3)], True),
        ([(0, 1)], False),
    ],
)
def test_heads_are_separate_if_tasks_share_no_unit(units, own):
    assert (
        heads_are_disjoint(start(Naive(), network(), small_stream(len(units)), units=units).context.units)
        is own
    )


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "cannot protect layer '0', a convolution that has groups"),
        (nn.Conv2d(4, 4, 3, padding="same"), "a convolution that pads 'same'"),
        (nn.Embedding(5, 4), r"parameter '0\.weight' of shape \[5, 4\]"),
        (nn.MultiheadAttention(4, 2), r"parameter '0\.in_proj_weight' of shape \[12, 4\]"),
        (nn.Conv1d(4, 4, 3), "linear and convolutional layers only"),
    ],
)
def test_layers_with_unknown_inputs_are_refused(module, message):
    with pytest.raises(UserError, match=message) as caught:
        check_layers("gpm", nn.Sequential(module, nn.Linear(4, 2)))
    assert caught.value.key == "continual.learner"
    check_layers("gpm", resnet8((1, 8, 8), 2, norm="batch"))
