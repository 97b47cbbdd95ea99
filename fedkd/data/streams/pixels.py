"""Changes of pixels in tasks: permutation, rotation, a common shape."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.heterogeneity import rotate
from fedkd.data.transfer import convert_images
from fedkd.errors import UserError

Transform = Callable[[np.ndarray], np.ndarray]
"""Takes normalised samples [n, *shape] to new ones of the same shape."""

CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Permutation:
    """Permutes pixels with all their channels, or features of vectors.

    It commutes with normalisation, which has one scale per channel. `source`, [H·W] or [F] int64, has the
    original place of each place in the result.
    """

    source: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return permuted samples [n, C, H, W] or [n, F]."""
        rows = x.reshape(-1, len(self.source))
        # All places are in range; without the check it is several times faster.
        return rows.take(self.source, axis=1, mode="clip").reshape(x.shape)


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rotates images counter-clockwise about their centre; new pixels at the edges are `black`.

    `black` is the normalised 0, [C, 1, 1] float32, so that rotation and normalisation commute.
    """

    degrees: float
    black: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return turned images [n, C, H, W]."""
        return np.ascontiguousarray(rotate(x - self.black, self.degrees) + self.black)


def to_shape(dataset: Dataset, shape: tuple[int, ...]) -> Dataset:
    """Convert a data set to a shape, between colour and grey if needed; uint8 images stay uint8."""
    if dataset.shape == shape:
        return dataset
    if not (dataset.kind.converts and len(shape) == 3):
        raise UserError(
            f"samples of '{dataset.name}' have shape {list(dataset.shape)} and cannot be brought to"
            f" {list(shape)}; only images (channels, height, width) can",
            key="continual.tasks.datasets",
        )
    return replace(
        dataset, train_x=_converted(dataset.train_x, shape), test_x=_converted(dataset.test_x, shape)
    )


def _converted(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    out = np.empty((len(x), *shape), x.dtype)
    for start in range(0, len(x), CHUNK):
        images = convert_images(x[start : start + CHUNK], shape)
        out[start : start + CHUNK] = np.rint(images * 255.0) if x.dtype == np.uint8 else images
    return out
