"""Changes of a model's weights as low-rank factors, if these are smaller."""

from collections.abc import Mapping

import numpy as np

from fedkd.continual import canonical_rotation
from fedkd.fusion.views import Arrays
from fedkd.training import one_blas_thread

FACTORS = "factors"
RANKS = "ranks"
NOISE = 1e-14
"""Share of the squares below which a direction is rounding of float32 factors."""
WHOLE = -1
"""Rank of an array that is sent whole."""


@one_blas_thread()
def compress(change: Arrays, energy: float) -> dict[str, np.ndarray]:
    """Return a change of weights as `factors` [P] float32 and `ranks` [L] int32, one for each array.

    An array `[O, ...]` is one matrix ``U diag(σ) Vᵀ`` of O rows, cut at the smallest rank k with ``Σ_{j ≤ k}
    σ_j² ≥ energy · Σ_j σ_j²``. Vectors, and matrices with fewer numbers than their factors, are sent whole.
    Factors depend on the matrix alone, also where singular values are equal (see
    `fedkd.continual.subspace.canonical_basis`).
    """
    parts, ranks = [np.empty(0, np.float32)], []
    for values in change.values():
        factors = _factors(values, energy) if values.ndim > 1 and values.size else None
        if factors is None:
            ranks.append(WHOLE)
            parts.append(values.ravel())
        else:
            ranks.append(len(factors[1]))
            parts += [factor.ravel() for factor in factors]
    return {FACTORS: np.concatenate(parts).astype(np.float32), RANKS: np.array(ranks, dtype=np.int32)}


def _factors(values: np.ndarray, energy: float) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return U `[m, k]`, σ `[k]` and Vᵀ `[k, n]`; None where the matrix is smaller."""
    matrix = values.reshape(len(values), -1).astype(np.float64)
    rows, columns = matrix.shape
    u, sigma, v = np.linalg.svd(matrix, full_matrices=False)
    energies = sigma**2
    rotation = canonical_rotation(u, energies, NOISE * float(energies.sum()))
    u, v, energies = u @ rotation, rotation.T @ v, energies[: rotation.shape[1]]
    rank = min(int((np.cumsum(energies) < energy * energies.sum()).sum()) + 1, len(energies))
    if rank * (rows + columns + 1) >= rows * columns:
        return None
    return u[:, :rank], sigma[:rank], v[:rank]


@one_blas_thread()
def decompress(compressed: Arrays, like: Arrays) -> dict[str, np.ndarray]:
    """Return the change that `compress` packed, by name, float64; `like` has arrays of its shapes."""
    flat, ranks = compressed[FACTORS].astype(np.float64), compressed[RANKS]
    if len(ranks) != len(like):
        raise ValueError(f"got ranks of {len(ranks)} arrays; must be {len(like)}")
    start, change = 0, {}
    for (name, values), rank, sizes in zip(
        like.items(), ranks.tolist(), factor_sizes(ranks, like), strict=True
    ):
        rows, columns = _matrix(values)
        if start + sum(sizes) > len(flat):
            raise ValueError(f"got {len(flat)} factors, too few for {name}")
        parts = np.split(flat[start : start + sum(sizes)], np.cumsum(sizes)[:-1])
        start += sum(sizes)
        if rank == WHOLE:
            change[name] = parts[0].reshape(values.shape)
        else:
            u, sigma, v = parts[0].reshape(rows, rank), parts[1], parts[2].reshape(rank, columns)
            change[name] = ((u * sigma) @ v).reshape(values.shape)
    if start != len(flat):
        raise ValueError(f"got {len(flat)} factors; must be {start}")
    return change


def factor_sizes(ranks: np.ndarray, like: Arrays) -> list[list[int]]:
    """Return the sizes of U, σ and Vᵀ for each array, or the size of an array sent whole."""
    sizes = []
    for values, rank in zip(like.values(), ranks.tolist(), strict=True):
        rows, columns = _matrix(values)
        sizes.append([values.size] if rank == WHOLE else [rows * rank, rank, rank * columns])
    return sizes


def _matrix(values: np.ndarray) -> tuple[int, int]:
    """Return the rows and columns of an array as one matrix."""
    return (len(values), values[0].size) if values.ndim > 1 and values.size else (values.size, 1)


def real(weights: Arrays) -> dict[str, np.ndarray]:
    """Return the real weights, without counters."""
    return {name: values for name, values in weights.items() if np.issubdtype(values.dtype, np.floating)}


def moved(weights: Arrays, change: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return weights plus a change in float32, equal on server and clients."""
    return {
        name: (values.astype(np.float64) + change[name]).astype(np.float32) if name in change else values
        for name, values in weights.items()
    }
