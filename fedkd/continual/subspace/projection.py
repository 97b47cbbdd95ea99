"""Projections of gradients by two products with a narrow basis.

A gradient ``∇`` of a weight ``[out, n]`` leaves the span of orthonormal columns B ``[n, r]`` by ``∇ − ∇ B
Bᵀ``. With a basis B' of the complement it is ``∇ B' B'ᵀ``; the narrower basis is used.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def complement(basis: Tensor) -> Tensor:
    """Return an orthonormal basis ``[n, n − r]`` of the complement of ``[n, r]``."""
    whole, _ = torch.linalg.qr(basis.double().cpu(), mode="complete")
    return whole[:, basis.shape[1] :].to(basis.dtype).contiguous().to(basis.device)


def project_out(gradient: Tensor, basis: Tensor) -> Tensor:
    """Return ``∇ − ∇ B Bᵀ`` of a gradient ``[out, n]`` and an orthonormal basis ``[n, r]``."""
    return torch.addmm(gradient, gradient @ basis, basis.T, alpha=-1.0)


def project_onto(gradient: Tensor, basis: Tensor) -> Tensor:
    """Return ``∇ B Bᵀ`` of a gradient ``[out, n]`` and an orthonormal basis ``[n, r]``."""
    return (gradient @ basis) @ basis.T


class Projection(NamedTuple):
    """A projection: basis ``[n, r]`` of the kept space (`onto`), or of the removed one."""

    basis: Tensor
    onto: bool

    @property
    def rank(self) -> int:
        """Number of columns r of the basis."""
        return self.basis.shape[1]

    def __call__(self, rows: Tensor) -> Tensor:
        """Project a gradient ``[out, n]`` or inputs ``[B, n]`` out of the subspace."""
        return project_onto(rows, self.basis) if self.onto else project_out(rows, self.basis)

    def less(self, rows: Tensor, inside: Tensor) -> Tensor:
        """Return ``X − (X B) Bᵀ`` of rows X ``[B, n]`` and ``X B`` ``[B, r]``, if not `onto`."""
        return torch.addmm(rows, inside, self.basis.T, alpha=-1.0)


def cheaper_projection(basis: Tensor) -> Projection:
    """Return the cheaper projection out of the span of orthonormal columns ``[n, r]``."""
    if 2 * basis.shape[1] > basis.shape[0]:
        return Projection(complement(basis), onto=True)
    return Projection(basis, onto=False)
