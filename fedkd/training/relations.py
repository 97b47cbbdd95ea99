"""Losses on the relations between samples of a batch, for features and outputs of any widths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.training.losses import in_floats, kd_kl

FAR = -1e9
"""Score with a softmax of exactly 0 and a finite logarithm."""


def graph_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``mean_i KL(softmax_{j≠i}(A_t[i, j] / τ) ‖ softmax_{j≠i}(A_s[i, j] / τ))`` of the cosines A.

    TRG, "Knowledge Distillation via Token-level Relationship Graph", arXiv 2306.12442, 2023. Student ``[B,
    F]``, teacher ``[B, K]`` constant; a small τ > 0 stresses the nearest samples. A row of zeros has cosine 0
    with every other; a batch of one sample has no relations.
    """
    itself = torch.eye(len(student), dtype=torch.bool, device=student.device)

    def scores(rows: Tensor) -> Tensor:
        unit = _unit(in_floats(rows))
        return (unit @ unit.T / temperature).masked_fill(itself, FAR)

    return kd_kl(scores(student), scores(teacher.detach()).softmax(dim=1), 1.0)


def distance_huber(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean Huber distance between the pairwise distances of both, each over its own mean.

    RKD-D: W. Park et al., "Relational Knowledge Distillation", CVPR 2019. As in the authors' code a mean
    distance is over distinct pairs, and the loss over all ``B²``. Student ``[B, F]``, teacher ``[B, K]``.
    """
    return F.smooth_l1_loss(_distances(in_floats(student)), _distances(in_floats(teacher.detach())))


def angle_huber(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean Huber distance of the cosines of angles over ``B³`` triples (RKD-A, same paper)."""
    return F.smooth_l1_loss(_angles(in_floats(student)), _angles(in_floats(teacher.detach())))


def _unit(rows: Tensor) -> Tensor:
    """Return rows ``[..., F]`` of length 1; those of zeros stay, and have no gradient."""
    squares = rows.square().sum(dim=-1, keepdim=True)
    is_zero = squares == 0
    return rows * torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squares).rsqrt())


def _distances(rows: Tensor) -> Tensor:
    squares = (rows[:, None] - rows[None]).square().sum(dim=-1)
    apart = squares > 0
    distances = torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
    total = distances.sum()
    return distances * apart.sum() / torch.where(total > 0, total, 1.0)


def _angles(rows: Tensor) -> Tensor:
    ways = _unit(rows[None] - rows[:, None])  # [j, i, F]: from j to i
    return ways @ ways.transpose(1, 2)
