"""Quick max-pooling: to the last bit what torch's own gives, wherever it is used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedkd.models.fast.batch_last import MaxPool2d


def images(*shape: int, channels_last: bool = True) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # many are equal
    x.view(-1)[::7] = -0.0
    x.view(-1)[::31] = torch.nan
    x.view(-1)[::37] = -torch.inf
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


@pytest.mark.parametrize(
    "shape",
    [(3, 6, 8, 8), (3, 6, 9, 8), (2, 5, 8, 7), (1, 1, 2, 3), (2, 1, 6, 6), (1, 4, 1, 5), (0, 3, 4, 4)],
)
@pytest.mark.parametrize("channels_last", [True, False])
def test_pooling_equals_torchs(shape, channels_last):
    x = images(*shape, channels_last=channels_last)
    if min(shape[2:]) < 2:
        with torch.no_grad(), pytest.raises(RuntimeError):
            MaxPool2d(2)(x)
        return
    with torch.no_grad():
        ours, theirs = MaxPool2d(2)(x), nn.MaxPool2d(2)(x)
    last = torch.channels_last
    assert ours.shape == theirs.shape
    assert ours.is_contiguous(memory_format=last) == theirs.is_contiguous(memory_format=last)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(nan=9.0), theirs.nan_to_num(nan=9.0))


@pytest.mark.parametrize("options", [{"stride": 1}, {"padding": 1}, {"ceil_mode": True}, {"dilation": 2}])
def test_other_windows_use_torch(options):
    x = images(2, 3, 7, 7)
    with torch.no_grad():
        ours, theirs = MaxPool2d(2, **options)(x), nn.MaxPool2d(2, **options)(x)
    assert torch.equal(ours.nan_to_num(nan=9.0), theirs.nan_to_num(nan=9.0))


def test_gradients_equal_torchs():
    x = images(2, 3, 6, 6).nan_to_num(nan=0.0)
    found = []
    for pool in (MaxPool2d(2), nn.MaxPool2d(2)):
        leaf = x.clone().requires_grad_()
        pool(leaf).square().sum().backward()
        found.append(leaf.grad)
    assert torch.equal(*found)
