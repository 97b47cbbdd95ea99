"""The canonical basis is the same for every basis of a subspace."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fedkd.continual.subspace.canonical_basis import canonical_rotation

ENERGIES = np.array([9.0, 4.0, 4.0, 4.0, 1.0, 0.0, 0.0])


def orthonormal(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(rows, columns)))[0]


def turned(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Return vectors with other signs, and with another basis where energies are equal."""
    other = vectors * np.random.default_rng(seed).choice([-1.0, 1.0], size=vectors.shape[1])
    other[:, 1:4] = other[:, 1:4] @ orthonormal(3, 3, seed)
    other[:, 5:] = orthonormal(len(vectors), len(vectors), seed)[:, :2]
    return other


@pytest.mark.parametrize("vectors", [orthonormal(8, 7, 1), np.eye(8)[:, :7]], ids=["drawn", "axes"])
def test_every_basis_of_a_matrix_becomes_the_canonical_one(vectors):
    expected = vectors @ canonical_rotation(vectors, ENERGIES, 1e-10)
    assert expected.shape == (8, 5)
    matrix = (vectors * ENERGIES) @ vectors.T
    assert_allclose((expected * ENERGIES[:5]) @ expected.T, matrix, atol=1e-12)
    for seed in range(5):
        other = turned(vectors, seed)
        rounded = ENERGIES * (1.0 + 1e-13 * np.random.default_rng(seed).normal(size=7))
        assert_allclose(other @ canonical_rotation(other, rounded, 1e-10), expected, atol=1e-12)


def test_both_factors_are_rotated_together():
    u, v = orthonormal(8, 7, 1), orthonormal(9, 7, 2)
    rotation = canonical_rotation(u, ENERGIES, 1e-10)
    assert_allclose(rotation.T @ rotation, np.eye(5), atol=1e-14)
    found = (u @ rotation * np.sqrt(ENERGIES[:5])) @ (rotation.T @ v.T)
    assert_allclose(found, (u * np.sqrt(ENERGIES)) @ v.T, atol=1e-12)


def test_the_first_of_the_largest_entries_is_positive():
    vector = np.array([[-0.5, 0.5 + 1e-16, 0.5, -0.5]]).T
    assert_allclose(vector @ canonical_rotation(vector, np.ones(1), 0.0), -vector, atol=1e-15)


def test_directions_without_energy_are_dropped():
    assert canonical_rotation(np.eye(3), np.zeros(3), 0.0).shape == (3, 0)
    assert canonical_rotation(np.eye(3), np.array([1e-20, -1e-20, -1e-19]), 1e-12).shape == (3, 0)
