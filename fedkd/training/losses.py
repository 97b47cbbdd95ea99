"""Losses of a client, as float32 means over a batch; targets are constants."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.data import LOG_VARIANCE


def in_floats(outputs: Tensor) -> Tensor:
    """Return a model's outputs in float32; complex ones are a `TypeError`."""
    if outputs.is_complex():
        raise TypeError(f"the model returns {outputs.dtype}; must be real numbers")
    return outputs.float()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``−mean_i log softmax(z_i)[y_i]`` of logits z ``[B, C]`` and labels y ``[B]`` int64."""
    return F.cross_entropy(in_floats(logits), labels)


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the number of correctly classified samples of a batch, int64."""
    return (logits.detach().argmax(dim=1) == labels).sum()


def soft_cross_entropy(logits: Tensor, target_probabilities: Tensor) -> Tensor:
    """Return ``−mean_i Σ_c t_ic log softmax(z_i)_c`` of z ``[B, C]`` and distributions t ``[B, C]``."""
    return F.cross_entropy(in_floats(logits), target_probabilities.detach().float())


def kd_kl(student_logits: Tensor, target_probabilities: Tensor, temperature: float) -> Tensor:
    """Return the distillation loss ``T² · mean_i KL(t_i ‖ softmax(s_i/T))`` of s, t ``[B, C]``.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. T² keeps the size of the gradient
    independent of the temperature T > 0. Rows of t sum to 1 and are at temperature T already. 0·log 0 = 0.
    """
    log_student = F.log_softmax(in_floats(student_logits) / temperature, dim=1)
    targets = target_probabilities.detach().float()
    # As in F.kl_div, which vmap does not support.
    divergences = torch.xlogy(targets, targets) - targets * log_student
    return temperature**2 * (divergences.sum() / len(student_logits))


def logits_mae(logits: Tensor, targets: Tensor) -> Tensor:
    """Return ``mean_ic |z_ic − t_ic|`` of logits ``[B, C]``, the digest loss of FedMD (Li & Wang 2019)."""
    return F.l1_loss(in_floats(logits), targets.detach().float())


def logits_mse(logits: Tensor, targets: Tensor) -> Tensor:
    """Return ``mean_ic (z_ic − t_ic)²`` of logits ``[B, C]``."""
    return F.mse_loss(in_floats(logits), targets.detach().float())


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ``mean (μ − y)²`` of outputs μ and targets y, ``[B, O]`` both."""
    return F.mse_loss(in_floats(outputs), targets)


def gaussian_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ``mean ½ [log σ² + (y − μ)²/σ²]`` of outputs (μ, log σ²) ``[B, 2·O]`` and y ``[B, O]``.

    log σ² is clipped to [−8, 8] (`LOG_VARIANCE`).
    """
    mean, log_variance = _gaussian(outputs)
    return 0.5 * (log_variance + (targets - mean).square() * torch.exp(-log_variance)).mean()


def gaussian_kl(outputs: Tensor, guidance: Tensor) -> Tensor:
    """Return ``mean KL(K ‖ N(μ, σ²))`` of outputs (μ, log σ²) and guidance K, ``[B, 2·O]`` both."""
    mean, log_variance = _gaussian(outputs)
    wanted, wanted_log_variance = _gaussian(guidance.detach())
    squares = torch.exp(wanted_log_variance) + (wanted - mean).square()
    return 0.5 * (log_variance - wanted_log_variance + squares * torch.exp(-log_variance) - 1.0).mean()


def scaled_error(outputs: Tensor, guidance: Tensor) -> Tensor:
    """Return ``mean (μ − K)²/(2σ̄²)`` of outputs (μ, log σ²) and guidance (K, log σ̄²), ``[B, 2·O]`` both."""
    mean, _ = _gaussian(outputs)
    wanted, log_variance = _gaussian(guidance.detach())
    return 0.5 * ((mean - wanted).square() * torch.exp(-log_variance)).mean()


def _gaussian(outputs: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance = in_floats(outputs).chunk(2, dim=1)
    return mean, log_variance.clamp(*LOG_VARIANCE)


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
