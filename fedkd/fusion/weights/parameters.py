"""A model's weights as two flat arrays, for transport and averages of any architecture."""

from collections.abc import Mapping, Sequence

import numpy as np

from fedkd.fusion.views import Arrays

PARAMETERS = "parameters"
COUNTERS = "counters"
PACKED = {PARAMETERS: "P", COUNTERS: "B"}
"""Shapes of both (see `fedkd.fusion.forms`)."""


def pack(weights: Arrays) -> dict[str, np.ndarray]:
    """Return `parameters` `[P]` float32 (normalisation statistics included) and `counters` `[B]` int64.

    Counters are the buffers that are not real numbers, like BatchNorm's number of batches seen.
    """
    real = [values.ravel() for values in weights.values() if _is_real(values)]
    other = [values.ravel() for values in weights.values() if not _is_real(values)]
    return {
        PARAMETERS: np.concatenate([np.empty(0, np.float32), *real]).astype(np.float32),
        COUNTERS: np.concatenate([np.empty(0, np.int64), *other]).astype(np.int64),
    }


def unpack(packed: Arrays, like: Arrays) -> dict[str, np.ndarray]:
    """Return packed weights with the names, shapes and types of the weights `like`."""
    start = {PARAMETERS: 0, COUNTERS: 0}
    weights = {}
    for name, values in like.items():
        kind = PARAMETERS if _is_real(values) else COUNTERS
        flat = packed[kind][start[kind] : start[kind] + values.size]
        weights[name] = flat.reshape(values.shape).astype(values.dtype)
        start[kind] += values.size
    return weights


def packs_of(uploads: Mapping[str, Sequence[np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Return each client's `pack` out of `Knowledge.payload`."""
    pairs = zip(uploads[PARAMETERS], uploads[COUNTERS], strict=True)
    return [{PARAMETERS: parameters, COUNTERS: counters} for parameters, counters in pairs]


def average(uploads: Sequence[Arrays], samples: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean of one architecture's packed weights by samples, summed in float64.

    Counters are the maximum. A client without samples `[N]` counts as one.
    """
    share = np.maximum(samples, 1) / np.maximum(samples, 1).sum()
    total = np.zeros(uploads[0][PARAMETERS].shape)
    for weight, upload in zip(share, uploads, strict=True):
        total += weight * upload[PARAMETERS].astype(np.float64)
    return {
        PARAMETERS: total.astype(np.float32),
        COUNTERS: np.max([upload[COUNTERS] for upload in uploads], axis=0),
    }


def _is_real(values: np.ndarray) -> bool:
    return np.issubdtype(values.dtype, np.floating)
