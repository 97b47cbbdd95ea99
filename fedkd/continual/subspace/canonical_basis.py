"""A canonical basis of eigenvectors and singular vectors, independent of the linear algebra library.

Their signs, and rotations among those of equal energies, depend on processor, threads and order of rows.
"""

from itertools import pairwise

import numpy as np

TIED = 1e-6
"""Energies of a smaller relative difference, and coordinates of one, have no order: rounding would choose."""


def canonical_rotation(vectors: np.ndarray, energies: np.ndarray, floor: float) -> np.ndarray:
    """Return the matrix R `[m, r]`: ``V R`` ``[n, r]`` is the canonical basis of the span of V.

    V are orthonormal columns `[n, m]` float64, energies their eigenvalues, or squared singular values,
    descending, `[m]`. For a matrix ``V σ Wᵀ``, ``Rᵀ Wᵀ`` are the other factor's rows.

    - Vectors whose energy is at most the floor, that of rounding, are dropped.
    - Each vector gets the sign that makes its first largest entry positive.
    - Vectors of equal energies are replaced by projections of the coordinate axes nearest to their span.
    """
    kept = energies[energies > floor]
    rotation = np.zeros((len(energies), len(kept)))
    begins = np.flatnonzero(np.diff(kept, prepend=np.inf) < -TIED * kept)
    for begin, end in pairwise([*begins, len(kept)]):
        rotation[begin:end, begin:end] = _rotation_within(vectors[:, begin:end])
    return rotation


def _rotation_within(vectors: np.ndarray) -> np.ndarray:
    """Return the orthogonal matrix that turns a basis of a span into the canonical one, `[k, k]`."""
    left, columns = vectors, []
    for _ in range(vectors.shape[1]):
        lengths = (left**2).sum(axis=1)
        axis = int(np.argmax(lengths >= (1.0 - TIED) * lengths.max()))
        columns.append(left[axis] / np.sqrt(lengths[axis]))
        left = left - (left * columns[-1]).sum(axis=1, keepdims=True) * columns[-1]
    return np.stack(columns, axis=1)
