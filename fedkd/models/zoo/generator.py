"""Generators: networks that make samples from noise and a label."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of LeakyReLU below 0


class Generator(nn.Module):
    """Makes samples with mean 0 and variance 1 in every channel or feature, like normalised data.

    Its last layer normalises over a batch, so a sample depends on its whole batch and is made in training
    mode. Images start at a quarter of their size. Two steps of doubling follow, each with a 3×3 convolution
    (Radford et al. 2016, with upsampling in place of transposed convolutions). Vectors come from two hidden
    layers, of 8 and 16 times `width` units. For images, `width` is the number of channels of the last hidden
    layer; earlier layers have twice as many. `noise` is the length of a noise vector.
    """

    recordable: ClassVar[bool] = True

    def __init__(self, input_shape: Sequence[int], classes: int, noise: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        entries = noise + classes
        self.body: nn.Module
        if len(input_shape) == 1:
            self.body = nn.Sequential(
                *_units(entries, 8 * width),
                *_units(8 * width, 16 * width),
                nn.Linear(16 * width, input_shape[0]),
            )
        else:
            self.body = _Growing(entries, input_shape, width)
        normalise = nn.BatchNorm1d if len(input_shape) == 1 else nn.BatchNorm2d
        self.normalise = normalise(input_shape[0], affine=False, track_running_stats=False)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return samples ``[B, *input_shape]`` of noise ``[B, Z]`` and labels ``[B]`` int64 in ``0..K-1``."""
        return self.normalise(self.body(torch.cat([noise, F.one_hot(labels, self.classes).float()], dim=1)))


class _Growing(nn.Module):
    recordable: ClassVar[bool] = True

    def __init__(self, entries: int, shape: Sequence[int], width: int) -> None:
        super().__init__()
        channels, height, width_of_image = shape
        self.sides = [(-(-height // part), -(-width_of_image // part)) for part in (4, 2, 1)]
        self.first = nn.Linear(entries, 2 * width * self.sides[0][0] * self.sides[0][1])
        self.start = nn.BatchNorm2d(2 * width)
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * width, after, 3, padding=1, bias=False), nn.BatchNorm2d(after))
            for after in (2 * width, width)
        )
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, entries: Tensor) -> Tensor:
        x = self.start(self.first(entries).unflatten(1, (-1, *self.sides[0])))
        for side, step in zip(self.sides[1:], self.steps, strict=True):
            x = F.leaky_relu(step(F.interpolate(x, size=side)), SLOPE)
        return torch.tanh(self.last(x))


def _units(before: int, after: int) -> tuple[nn.Module, ...]:
    return nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.LeakyReLU(SLOPE)
