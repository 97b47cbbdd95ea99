"""Sketches of layer inputs against direct products."""

from __future__ import annotations

import numpy as np
import torch
from small_learning import small_stream, start
from torch import nn

from fedkd.continual.baselines.baselines import Naive
from fedkd.continual.subspace.bases import layer_inputs
from fedkd.continual.subspace.sketch import layer_sketches
from fedkd.models.zoo.mlp import mlp


def learning_of(client, network, stream):
    learning = start(Naive(), network, stream, seed=1)
    learning.context._client = client
    learning.enter(0)
    return learning


def uniform(context, name, inputs, width):
    """Return Ω as it is drawn for a client's layer."""
    drawn = torch.rand(inputs, width, generator=context.generator(f"sketch-{name}"), dtype=torch.float64)
    return 2.0 * drawn.numpy() - 1.0


def inputs_of(network, x):
    """Return what every linear layer of a perceptron multiplies, ``[n, k]`` float64."""
    found, now = [], x.flatten(1)
    for layer in [m for m in network.modules() if isinstance(m, nn.Linear)]:
        found.append(now.detach().double().numpy().T)
        now = torch.relu(layer(now))
    return found


def test_sketches_are_additive():
    torch.manual_seed(0)
    network = mlp((6,), 2, hidden=[5])
    x = small_stream(1, samples=40)[0][0]
    basis = torch.linalg.qr(torch.randn(6, 2))[0]
    parts, sums, omegas, shares = [x[:10], x[10:]], {}, {}, {}
    for client, own in enumerate(parts):
        context = learning_of(client, network, [(own, torch.zeros(len(own), dtype=torch.int64))]).context
        found = layer_sketches(context, context.layers, own, {}, {"body.1": basis}, 4)
        for name, sketch in found.items():
            sums[name] = sums.get(name, 0.0) + sketch.columns.numpy()
            omegas.setdefault(name, []).append(uniform(context, name, len(own), 4))
            shares.setdefault(name, []).append(sketch.left)
    outside = np.eye(6) - (basis @ basis.T).double().numpy()
    for name, inputs, left in zip(sums, inputs_of(network, x), (outside, np.eye(5)), strict=True):
        rest = left @ inputs
        np.testing.assert_allclose(sums[name], rest @ np.vstack(omegas[name]), atol=1e-5)
        for share, part in zip(shares[name], (slice(10), slice(10, None)), strict=True):
            np.testing.assert_allclose(share, (rest[:, part] ** 2).sum() / (inputs[:, part] ** 2).sum(), 1e-5)
    assert shares["head"] == [1.0, 1.0]


def test_sketch_matrices_differ_by_client_and_layer_and_repeat():
    network = mlp((6,), 2, hidden=[6])
    stream = small_stream(1)
    contexts = [learning_of(client, network, stream).context for client in (0, 0, 1)]
    one, again, other = (layer_sketches(c, c.layers, stream[0][0], {}, {}) for c in contexts)
    assert torch.equal(one["head"].columns, again["head"].columns)
    assert not torch.equal(one["head"].columns, other["head"].columns)
    assert not np.array_equal(uniform(contexts[0], "head", 9, 3), uniform(contexts[0], "body.1", 9, 3))


def test_sketches_count_patches_and_skip_unused_layers():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 2))
    with torch.no_grad():
        network[0].bias.fill_(-1e3)  # nothing passes
    x = torch.randn(5, 2, 4, 4)
    context = learning_of(0, network, [(x, torch.zeros(5, dtype=torch.int64))]).context
    found = layer_sketches(context, context.layers, x, {}, {})
    assert found["0"].columns.shape == (18, 18) and found["0"].left == 1.0
    assert (float(found["3"].columns.abs().max()), found["3"].left) == (0.0, 0.0)
    # Energies of a sketch are those of the inputs: entries of Ω have a variance of a third.
    wide = layer_sketches(context, context.layers, x, {}, {}, 20_000)["0"].columns.numpy()
    inputs = layer_inputs(context, context.layers, x, {})["0"].numpy()
    np.testing.assert_allclose(3.0 / 20_000 * wide @ wide.T, inputs @ inputs.T, atol=1.5)
