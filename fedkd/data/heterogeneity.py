"""Differences between clients' data beyond their labels: rotation, noise, tint, wrong training labels.

Training and local test samples of a client share its skew; the transfer set and the common test set have
none. Only training labels are wrong.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd.errors import UserError
from fedkd.randomness import numpy_generator
from fedkd.scenario import Heterogeneity


@dataclass(frozen=True)
class Skew:
    """The skew of one client."""

    angle: float = 0.0  # degrees of its images' counter-clockwise rotation
    noise: float = 0.0  # standard deviation of the noise on its samples, in units of the normalised data
    colour: tuple[float, ...] = ()  # factor of each channel; empty: all 1
    label_noise: float = 0.0  # share of its training labels that are replaced


def draw_skews(
    heterogeneity: Heterogeneity, clients: int, shape: tuple[int, ...], classes: int, *, seed: int
) -> tuple[Skew, ...]:
    """Draw each client's skew, each kind by its own generator; empty if clients do not differ."""
    if heterogeneity == Heterogeneity():
        return ()
    if heterogeneity.label_noise and classes < 2:
        raise UserError("needs at least 2 classes, the data have 1", key="heterogeneity.label_noise")

    def skew(client: int) -> Skew:
        def uniform(purpose: str, low: float, high: float, size: int | None = None) -> Any:
            return numpy_generator(seed, purpose, client=client).uniform(low, high, size)

        turn, tint = heterogeneity.rotation, heterogeneity.colour
        return Skew(
            angle=float(uniform("rotation", -turn, turn)) if turn else 0.0,
            noise=float(uniform("noise-level", 0.0, heterogeneity.noise)),
            colour=tuple(uniform("colour", 1.0 - tint, 1.0 + tint, shape[0]).tolist()) if tint else (),
            label_noise=float(uniform("label-noise-level", 0.0, heterogeneity.label_noise)),
        )

    return tuple(map(skew, range(clients)))


def skew_images(images: np.ndarray, skew: Skew) -> np.ndarray:
    """Rotate and tint images [n, channels, height, width] before normalisation, uint8 / 255; float32."""
    out = images.astype(np.float32)
    if images.dtype == np.uint8:
        out /= 255.0
    if skew.angle:
        out = rotate(out, skew.angle)
    if skew.colour:  # a brightness, if there is one channel
        out = out * np.array(skew.colour, dtype=np.float32)[:, None, None]
    return out


def rotate(images: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate images [n, channels, height, width] float32 counter-clockwise, bilinearly; outside is 0."""
    height, width = images.shape[2:]
    down = np.arange(height)[:, None] - (height - 1) / 2
    right = np.arange(width)[None, :] - (width - 1) / 2
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    # Position of each result pixel in the original, with a border of one black pixel around it.
    row = np.clip(right * sin + down * cos + (height - 1) / 2 + 1, 0, height + 1)
    column = np.clip(right * cos - down * sin + (width - 1) / 2 + 1, 0, width + 1)
    top, left = np.minimum(row.astype(np.int64), height), np.minimum(column.astype(np.int64), width)
    low, far = (row - top).astype(np.float32), (column - left).astype(np.float32)
    framed = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    upper = framed[:, :, top, left] * (1 - far) + framed[:, :, top, left + 1] * far
    lower = framed[:, :, top + 1, left] * (1 - far) + framed[:, :, top + 1, left + 1] * far
    return upper * (1 - low) + lower * low


def add_noise(x: np.ndarray, std: float, generator: np.random.Generator) -> np.ndarray:
    """Return samples [n, ...] float32 with Gaussian noise of standard deviation `std`."""
    return x + np.float32(std) * generator.standard_normal(x.shape, dtype=np.float32)


def replace_labels(
    labels: np.ndarray, classes: int, share: float, generator: np.random.Generator
) -> np.ndarray:
    """Replace exactly ⌊share·n⌋ of labels [n], drawn without replacement, by other classes.

    The other class is uniform over the C − 1 wrong ones: symmetric label noise (van Rooyen et al., "Learning
    with Symmetric Label Noise", NeurIPS 2015).
    """
    chosen = generator.choice(len(labels), int(share * len(labels)), replace=False)
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + generator.integers(1, classes, len(chosen))) % classes
    return noisy
