"""Zero mean and unit variance per channel or feature; or samples as stored."""

from dataclasses import dataclass

import numpy as np

SMALLEST_STD = 1e-8  # below it a channel is constant: it is centred and left unscaled
CHUNK = 4096


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of a train split, float64 [C, 1, …] or [F]; uint8 taken as value / 255."""

    mean: np.ndarray
    std: np.ndarray

    def normalise(self, x: np.ndarray) -> np.ndarray:
        """Return (x − mean) / std as a new float32 C-contiguous array; uint8 is divided by 255 first."""
        scale = 1.0 / self.std
        out = x.astype(np.float32, order="C")
        out *= (scale / 255.0 if x.dtype == np.uint8 else scale).astype(np.float32)
        out -= (self.mean * scale).astype(np.float32)
        return out


@dataclass(frozen=True)
class AsStored(Statistics):
    """Keeps samples as they are stored, but divides uint8 by 255."""

    def normalise(self, x: np.ndarray) -> np.ndarray:
        """Return a new C-contiguous array: int64 for integers other than uint8, else float32."""
        if x.dtype.kind in "iu" and x.dtype != np.uint8:
            return x.astype(np.int64, order="C")
        out = x.astype(np.float32, order="C")
        if x.dtype == np.uint8:
            out /= np.float32(255.0)
        return out


def as_stored(x: np.ndarray) -> AsStored:
    """Return the normalisation that keeps samples [n, *shape] as they are stored."""
    shape = (x.shape[1], *[1] * (x.ndim - 2))
    return AsStored(np.zeros(shape), np.ones(shape))


def measure(x: np.ndarray) -> Statistics:
    """Return a train split's statistics by channel or feature (axis 1), in float64 (exact for uint8)."""
    axes, shape = (0, *range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
    count, unit = x.size // x.shape[1], 1.0
    chunks = [slice(start, start + CHUNK) for start in range(0, len(x), CHUNK)]
    if x.dtype == np.uint8:
        unit = 255.0
        mean = sum(x[chunk].sum(axis=axes, dtype=np.uint64) for chunk in chunks) / count
        squares = (np.square(x[chunk], dtype=np.uint16).sum(axis=axes, dtype=np.uint64) for chunk in chunks)
        variance = sum(squares) / count - mean**2
    else:
        mean = x.mean(axis=axes, dtype=np.float64)
        variance = sum(((x[chunk] - mean.reshape(shape)) ** 2).sum(axis=axes) for chunk in chunks) / count
    std = np.sqrt(np.maximum(variance, 0.0)) / unit
    std = np.where(std < SMALLEST_STD, 1.0, std)
    return Statistics((mean / unit).reshape(shape), std.reshape(shape))
