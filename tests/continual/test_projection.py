"""Projections inside and outside of subspaces against the matrix ``B Bᵀ``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedkd.continual.subspace.bases import relatedness
from fedkd.continual.subspace.projection import cheaper_projection, complement, project_onto, project_out


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def orthonormal(n, r, seed=0):
    return torch.linalg.qr(torch.randn(n, r, generator=g(seed)).double())[0]


def test_projections_equal_the_matrix_b_b_transposed():
    basis, gradient = orthonormal(7, 3), torch.randn(4, 7, generator=g(1)).double()
    b, d = basis.numpy(), gradient.numpy()
    np.testing.assert_allclose(project_out(gradient, basis), d - d @ b @ b.T, atol=1e-14)
    np.testing.assert_allclose(project_onto(gradient, basis), d @ b @ b.T, atol=1e-14)
    np.testing.assert_allclose(project_onto(gradient, complement(basis)), d - d @ b @ b.T, atol=1e-14)
    share = np.linalg.norm(d @ b @ b.T) / np.linalg.norm(d)
    assert relatedness(gradient, basis) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("rank", [0, 5])
def test_projections_with_empty_and_full_bases_are_exact(rank):
    basis, gradient = orthonormal(5, rank), torch.randn(4, 5, generator=g(1)).double()
    expected = gradient if rank == 0 else torch.zeros_like(gradient)
    torch.testing.assert_close(project_out(gradient, basis), expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(project_onto(gradient, complement(basis)), expected, atol=1e-14, rtol=0)
    assert relatedness(gradient, basis) == pytest.approx(rank / 5, abs=1e-12)
    assert relatedness(torch.zeros(4, 5), basis) == 0.0


@pytest.mark.parametrize("rank", [1, 4, 6])
def test_the_complement_projector_is_independent_of_the_basis(rank):
    """Its own columns are arbitrary, and only their projector is used."""
    basis = orthonormal(7, rank)
    left = complement(basis)
    for seed in range(3):
        other = complement(
            (basis @ orthonormal(rank, rank, seed))[:, torch.randperm(rank, generator=g(seed))]
        )
        torch.testing.assert_close(other @ other.T, left @ left.T, atol=1e-14, rtol=0)


@pytest.mark.parametrize(("rank", "onto"), [(0, False), (3, False), (4, True), (7, True)])
def test_the_cheaper_projection_equals_the_full_one(rank, onto):
    basis, gradient = orthonormal(7, rank), torch.randn(4, 7, generator=g(1)).double()
    projection = cheaper_projection(basis)
    assert (projection.onto, projection.rank) == (onto, min(rank, 7 - rank))
    torch.testing.assert_close(projection(gradient), project_out(gradient, basis), atol=1e-14, rtol=0)
