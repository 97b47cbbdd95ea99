"""Images that lie batch last: what torch's own layers make of them, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from fedkd.models.fast.batch_last import (
    FEWEST,
    Conv2d,
    Flatten,
    MaxPool2d,
    batch_first,
    batch_last,
    lies_batch_last,
)
from fedkd.models.zoo.lenet import lenet
from fedkd.training.device import prepare_model


def draws(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def both(*args, **options) -> tuple[nn.Conv2d, nn.Conv2d]:
    torch.manual_seed(0)
    ours, theirs = Conv2d(*args, **options), nn.Conv2d(*args, **options).double()
    theirs.load_state_dict(ours.state_dict())
    return prepare_model(ours, "cpu"), theirs


@pytest.mark.parametrize(
    ("shape", "layer", "options"),
    [
        ((16, 1, 9, 9), (1, 6, 5), {"padding": 2}),
        ((16, 1, 8, 9), (1, 6, 5), {"padding": 2}),  # rows by fours
        ((17, 3, 6, 7), (3, 8, (3, 5)), {}),
        ((17, 6, 7, 8), (6, 16, 5), {}),
        ((16, 3, 6, 9), (3, 17, (3, 5)), {"padding": (0, 1), "bias": False}),
        ((16, 2, 4, 4), (2, 3, 1), {"padding": 1}),
        ((16, 2, 5, 3), (2, 1, (5, 3)), {}),  # one pixel is left
    ],
)
@pytest.mark.parametrize("lies", ["batch last", "channels last", "as torch has it"])
def test_convolutions_equal_float64_within_rounding(shape, layer, options, lies):
    ours, theirs = both(*layer, **options)
    exact = draws(*shape).double().requires_grad_()
    x = exact.detach().float()
    if lies == "batch last":
        x = batch_first(batch_last(x).contiguous())
    elif lies == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    out, expected = ours(x), theirs(exact)
    assert lies_batch_last(out)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(ours(x), out)
    outer = draws(*out.shape)
    out.backward(outer)
    expected.backward(outer.double())
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad.double(), other.grad, rtol=1e-4, atol=1e-4)
        assert own.grad.stride() == own.stride()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((FEWEST - 1, 2, 6, 6), {}),
        ((FEWEST, 2, 6, 6), {"stride": 2}),
        ((FEWEST, 2, 6, 6), {"dilation": 2}),
        ((FEWEST, 2, 6, 6), {"groups": 2}),
        ((FEWEST, 2, 6, 6), {"padding": "same"}),
        ((FEWEST, 2, 6, 6), {"padding": 1, "padding_mode": "circular"}),
        ((2, 20, 20), {}),  # no batch
        ((0, 2, 6, 6), {}),
    ],
)
def test_unsupported_convolutions_use_torch(shape, options):
    torch.manual_seed(0)
    ours, theirs = Conv2d(2, 4, 3, **options), nn.Conv2d(2, 4, 3, **options)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(draws(*shape)), theirs(draws(*shape)))


def test_too_small_images_are_refused_as_in_torch():
    for layer in (Conv2d(1, 2, 5), nn.Conv2d(1, 2, 5)):
        with pytest.raises(RuntimeError, match="Kernel size"):
            layer(draws(FEWEST, 1, 4, 9))
        with pytest.raises(RuntimeError, match="channels"):
            layer(draws(FEWEST, 3, 9, 9))


def test_vectorised_lenets_equal_single_ones():
    torch.manual_seed(0)
    model, x = lenet((1, 8, 8), 3), draws(2, FEWEST, 1, 8, 8)
    weights = {name: torch.stack([p, 2 * p]) for name, p in model.named_parameters()}
    together = vmap(lambda own, batch: functional_call(model, own, (batch,)))(weights, x)
    for place in range(2):
        alone = functional_call(model, {name: p[place] for name, p in weights.items()}, (x[place],))
        torch.testing.assert_close(together[place], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 6, 8, 8), (3, 6, 9, 8), (2, 5, 8, 7), (2, 1, 3, 3), (2, 3, 2, 2)])
def test_pooling_and_its_gradients_equal_torchs_to_the_bit(shape):
    values = draws(*shape).round(decimals=1)  # many are equal, in all corners of a window
    values.view(-1)[::7] = -0.0
    values.view(-1)[::5] = values.max()
    values.view(-1)[::13] = -torch.inf
    leaves = values.clone().requires_grad_(), values.clone().requires_grad_()
    lying = batch_first(batch_last(leaves[0]).contiguous())
    assert lies_batch_last(lying)
    found = []
    for pool, leaf, images in zip((MaxPool2d(2), nn.MaxPool2d(2)), leaves, (lying, leaves[1]), strict=True):
        out = pool(images)
        out.backward(draws(*out.shape))
        found.append((out, leaf.grad))
    assert torch.equal(*(out for out, _ in found))
    assert torch.equal(*(gradient for _, gradient in found))
    with torch.no_grad():
        assert torch.equal(MaxPool2d(2)(lying), found[1][0])


def test_pooling_propagates_nan():
    values = draws(2, 3, 4, 4)
    values[0, 1, 2, 3] = torch.nan
    lying = batch_first(batch_last(values).contiguous())
    for images in (lying, lying.requires_grad_()):
        assert torch.equal(MaxPool2d(2)(images).isnan(), nn.MaxPool2d(2)(values).isnan())


def test_a_lenet_is_batch_last_before_its_features():
    model, seen = prepare_model(lenet((1, 8, 8), 3), "cpu"), []
    for module in model.body[:6]:
        module.register_forward_hook(lambda _, __, out: seen.append(lies_batch_last(out)))
    model(draws(FEWEST, 1, 8, 8)).sum().backward()
    assert seen == [True] * 6


@pytest.mark.parametrize("batch", [1, FEWEST])
def test_flattened_batches_go_back_batch_last(batch):
    images = batch_first(batch_last(draws(batch, 3, 4, 5)).contiguous()).requires_grad_()
    out, outer = Flatten()(images), draws(batch, 60)
    assert torch.equal(out, images.flatten(1))
    (gradient,) = torch.autograd.grad(out, images, outer)
    assert torch.equal(gradient, outer.view(batch, 3, 4, 5)) and lies_batch_last(gradient)
    with torch.no_grad():
        assert torch.equal(Flatten()(images), out)
    firsts = images.detach().contiguous()  # as torch has it
    assert torch.equal(Flatten()(firsts), out) and torch.equal(Flatten(0)(firsts), firsts.flatten())
