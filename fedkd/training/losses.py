"""Losses of a client, each a float32 mean over the samples of a batch; targets are constants."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def in_floats(outputs: Tensor) -> Tensor:
    """Return a model's outputs in float32; complex ones are a `TypeError`."""
    if outputs.is_complex():
        raise TypeError(f"the model returns {outputs.dtype}; must be real numbers")
    return outputs.float()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``−mean_i log softmax(z_i)[y_i]`` of logits z ``[B, C]`` and labels y ``[B]`` int64."""
    return F.cross_entropy(in_floats(logits), labels)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the number of correctly classified samples of a batch, int64."""
    return (logits.detach().argmax(dim=1) == labels).sum()


def soft_cross_entropy(logits: Tensor, target_probabilities: Tensor) -> Tensor:
    """Return ``−mean_i Σ_c t_ic log softmax(z_i)_c``: `kd_kl` at T = 1 plus the mean entropy of the targets.

    Logits z are ``[B, C]``, targets t ``[B, C]`` rows that sum to 1.
    """
    return F.cross_entropy(in_floats(logits), target_probabilities.detach().float())


def kd_kl(student_logits: Tensor, target_probabilities: Tensor, temperature: float) -> Tensor:
    """Return the distillation loss ``T² · mean_i KL(t_i ‖ softmax(s_i/T))``.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. T² keeps the size of the gradient
    independent of the temperature T > 0. 0·log 0 = 0.

    Args:
        student_logits: s, ``[B, C]``.
        target_probabilities: t, ``[B, C]``, rows that sum to 1 and are at temperature T already.
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
