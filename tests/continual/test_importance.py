"""Per-sample importances against loops, and against NumPy written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_learning import small_stream, start
from torch import nn

from fedkd.continual.baselines.baselines import Naive
from fedkd.continual.regularisation.fisher import fisher_diagonal
from fedkd.continual.regularisation.importance import some_samples, summed_gradients
from fedkd.models.zoo.cnn import cnn
from fedkd.models.zoo.mlp import mlp
from fedkd.models.zoo.resnet import resnet8
from fedkd.randomness import seeded_torch


def log_likelihood(outputs, labels):
    return -F.cross_entropy(outputs, labels, reduction="none")


def squared_norm(outputs, _):
    return outputs.square().sum(1)


class Tied(nn.Module):
    """One weight in two layers, one of which is also used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(self.first(x))))))


class ReadsWeight(nn.Module):
    """A layer that is called once, and whose weight is read once more besides."""

    def __init__(self):
        super().__init__()
        self.encode, self.head = nn.Linear(5, 4), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.encode(x)) @ self.encode.weight)


class Positions(nn.Module):
    """A linear layer on every position of a sample."""

    def __init__(self):
        super().__init__()
        self.each, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.each(torch.stack([x, 2 * x], 1))).mean(1))


class Folded(Positions):
    """The same, with samples and positions folded into one dimension."""

    def forward(self, x):
        both = torch.stack([x, 2 * x], 1).flatten(0, 1)
        return self.head(torch.tanh(self.each(both)).view(len(x), 2, -1).mean(1))


class Branches(nn.Module):
    """Its course depends on values, so that it cannot be vectorised."""

    def __init__(self):
        super().__init__()
        self.scale, self.head, self.unused = nn.Parameter(torch.ones(5)), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        rows = [row * self.scale if row.sum().item() > 0 else row + self.scale for row in x]
        return self.head(torch.stack(rows))


class Masked(nn.Linear):
    """A kind of linear layer with a forward pass of its own."""

    def forward(self, x):
        return F.linear(x, self.weight.square(), self.bias)


def images(channels=2, size=6):
    return torch.randn(7, channels, size, size, generator=torch.Generator().manual_seed(3))


def vectors():
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(3))


NETWORKS = {
    "mlp": lambda: (mlp((5,), 3, hidden=(6, 4), dropout=0.5), vectors()),
    "inplace": lambda: (nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)), vectors()),
    "single": lambda: (nn.Linear(5, 3, bias=False), vectors()),
    "tied": lambda: (Tied(), vectors()),
    "reads-weight": lambda: (ReadsWeight(), vectors()),
    "positions": lambda: (Positions(), vectors()),
    "folded": lambda: (Folded(), vectors()),
    "branches": lambda: (Branches(), vectors()),
    "masked": lambda: (nn.Sequential(Masked(5, 4), nn.Tanh(), nn.Linear(4, 3)), vectors()),
    "normed": lambda: (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)),
        vectors(),
    ),
    "grouped": lambda: (
        nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 3)),
        images(),
    ),
    "cnn": lambda: (cnn((1, 8, 8), 3), images(1, 8)),
    "resnet8-batch": lambda: (resnet8((2, 6, 6), 3, norm="batch"), images()),
}


def by_loop(network, x, y, score, magnitude):
    """Return the sums, one backward pass a sample."""
    parameters = dict(network.named_parameters())
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    network.eval()
    for n in range(len(x)):
        value = score(network(x[n : n + 1]), y[n : n + 1]).sum()
        gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                sums[name] += magnitude(gradient)
    return sums


def made(name):
    """Return a network with used running statistics, samples and labels, all in float64."""
    with seeded_torch(5):
        network, x = NETWORKS[name]()
        network.double().train()
        with torch.no_grad():
            network(3 * x.double() + 1)
    return network, x.double(), torch.arange(len(x)) % 3


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("score", "magnitude"),
    [(log_likelihood, torch.square), (squared_norm, torch.abs)],
    ids=["squared", "absolute"],
)
def test_importance_equals_a_loop_over_samples(name, score, magnitude):
    network, x, y = made(name)
    sums = summed_gradients(network, x, y, score, magnitude)
    expected = by_loop(network, x, y, score, magnitude)
    assert sums.keys() == expected.keys()
    for parameter, values in expected.items():
        torch.testing.assert_close(sums[parameter], values, rtol=1e-10, atol=1e-14)


def test_importance_is_independent_of_the_chunk_size(monkeypatch):
    network, x, y = made("cnn")
    whole = summed_gradients(network, x, y, log_likelihood, torch.square)
    monkeypatch.setattr("fedkd.continual.regularisation.importance.ROWS", 3)
    parts = summed_gradients(network, x, y, log_likelihood, torch.square)
    monkeypatch.setattr("fedkd.continual.regularisation.importance.FLOATS", 1)
    single = summed_gradients(network, x, y, log_likelihood, torch.square)
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(single[name], values, rtol=1e-10, atol=1e-14)


def test_importance_of_an_mlp_equals_numpy():
    network, x, y = made("mlp")
    w1, b1, w2, b2, w3, b3 = (p.detach().numpy() for p in network.parameters())
    sums = [np.zeros_like(w) for w in (w1, b1, w2, b2, w3, b3)]
    for a0, label in zip(x.numpy(), y.tolist(), strict=True):
        z1 = w1 @ a0 + b1
        z2 = w2 @ np.maximum(z1, 0) + b2
        z3 = w3 @ np.maximum(z2, 0) + b3
        d3 = np.eye(3)[label] - np.exp(z3) / np.exp(z3).sum()  # of log softmax(z3)[label]
        d2 = (w3.T @ d3) * (z2 > 0)
        d1 = (w2.T @ d2) * (z1 > 0)
        gradients = np.outer(d1, a0), d1, np.outer(d2, np.maximum(z1, 0)), d2
        gradients += np.outer(d3, np.maximum(z2, 0)), d3
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient**2
    found = summed_gradients(network, x, y, log_likelihood, torch.square)
    for values, expected in zip(found.values(), sums, strict=True):
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9, atol=1e-14)


def test_importance_of_a_convolution_with_batch_norm_equals_numpy():
    with seeded_torch(2):
        body = nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()
        network = nn.Sequential(*body, nn.Linear(8, 3))
        network.double()
        network(5 * torch.randn(9, 1, 3, 3).double())
        x = torch.randn(4, 1, 3, 3).double()
    kernel, offset, gamma, beta, weight, bias = (p.detach().numpy() for p in network.parameters())
    mean, std = network[1].running_mean.numpy(), np.sqrt(network[1].running_var.numpy() + network[1].eps)
    sums = [np.zeros_like(w) for w in (kernel, offset, gamma, beta, weight, bias)]
    for image in x.numpy()[:, 0]:
        patches = np.array([[image[i : i + 2, j : j + 2] for j in range(2)] for i in range(2)])
        conv = np.einsum("ijpq,cpq->cij", patches, kernel[:, 0]) + offset[:, None, None]
        unit = (conv - mean[:, None, None]) / std[:, None, None]
        normed = gamma[:, None, None] * unit + beta[:, None, None]
        features = np.maximum(normed, 0).reshape(-1)
        d_out = 2 * (weight @ features + bias)  # of the squared norm
        d_normed = (weight.T @ d_out).reshape(2, 2, 2) * (normed > 0)
        d_conv = d_normed * (gamma / std)[:, None, None]
        gradients = (
            np.einsum("cij,ijpq->cpq", d_conv, patches)[:, None],
            d_conv.sum((1, 2)),
            (d_normed * unit).sum((1, 2)),
            d_normed.sum((1, 2)),
            np.outer(d_out, features),
            d_out,
        )
        for total, gradient in zip(sums, gradients, strict=True):
            total += np.abs(gradient)
    found = summed_gradients(network, x, torch.zeros(4, dtype=torch.int64), squared_norm, torch.abs)
    for values, expected in zip(found.values(), sums, strict=True):
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9, atol=1e-14)


def test_importance_counts_gradients_that_cancel_in_a_batch():
    network = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(network.weight)
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    y = torch.tensor([0, 1])
    assert torch.autograd.grad(log_likelihood(network(x), y).sum(), network.weight)[0].abs().max() == 0
    sums = summed_gradients(network, x, y, log_likelihood, torch.square)
    assert sums["weight"].tolist() == [[0.5, 0.0], [0.5, 0.0]]


def test_importance_leaves_the_network_unchanged():
    network, x, y = made("resnet8-batch")
    network.train()
    network.body[1].eval()
    before = {name: values.clone() for name, values in network.state_dict().items()}
    summed_gradients(network, x, y, log_likelihood, torch.square)
    assert network.training and not network.body[1].training
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_frozen_and_unused_parameters_have_no_importance():
    network, x, y = made("branches")
    network.head.weight.requires_grad_(False)
    sums = summed_gradients(network, x, y, log_likelihood, torch.square)
    assert set(sums) == {"scale", "head.bias", "unused.weight", "unused.bias"}
    assert not sums["unused.weight"].any() and not sums["unused.bias"].any()
    network.head.weight.requires_grad_(True)
    expected = by_loop(network, x, y, log_likelihood, torch.square)
    torch.testing.assert_close(sums["head.bias"], expected["head.bias"], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("count", [0, 1])
def test_importance_works_with_few_samples(count):
    network, x, y = made("cnn")
    sums = summed_gradients(network, x[:count], y[:count], log_likelihood, torch.square)
    for name, values in by_loop(network, x[:count], y[:count], log_likelihood, torch.square).items():
        torch.testing.assert_close(sums[name], values, rtol=1e-10, atol=1e-14)


def side_of(network, stream):
    learning = start(Naive(), network, stream)
    learning.enter(0)
    return learning.context


def test_the_empirical_fisher_uses_the_tasks_own_softmax():
    with seeded_torch(1):
        network = mlp((6,), 4, hidden=(5,)).double()
    stream = [(x.double(), y) for x, y in small_stream(2)]
    found = fisher_diagonal(side_of(network, stream), "true", None)
    expected = by_loop(network, *stream[0], lambda o, y: log_likelihood(o[:, :2], y), torch.square)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values / 24, rtol=1e-10, atol=1e-14)
    assert not found["head.weight"][2:].any()


def test_the_sampled_fisher_follows_the_models_distribution():
    network = nn.Linear(1, 2)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([1.5, 0.0]))
    n = 20_000
    context = side_of(network, [(torch.ones(n, 1), torch.ones(n, dtype=torch.int64))])
    p = float(torch.sigmoid(torch.tensor(1.5)))
    deviation = abs(1 - 2 * p) * (p * (1 - p) / n) ** 0.5  # of the mean of (y − p)²
    for values in fisher_diagonal(context, "sampled", None).values():
        assert torch.all((values - p * (1 - p)).abs() < 4 * deviation)
    for values in fisher_diagonal(context, "true", None).values():
        torch.testing.assert_close(values, torch.full_like(values, p**2), rtol=1e-5, atol=0.0)


def test_the_fisher_information_of_no_samples_is_zero():
    context = side_of(nn.Linear(6, 2), [(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))])
    assert not any(values.any() for values in fisher_diagonal(context, "sampled", 5).values())


def test_sample_draws_are_distinct_and_repeatable():
    stream = small_stream(1)
    context = side_of(nn.Linear(6, 2), stream)
    x, y = some_samples(context, 10)
    again, _ = some_samples(context, 10)
    assert len(x) == len(y) == 10 and len(x.unique(dim=0)) == 10 and torch.equal(x, again)
    assert not torch.equal(x, stream[0][0][:10])
    assert some_samples(context, 25)[0] is stream[0][0] and some_samples(context, None)[0] is stream[0][0]
