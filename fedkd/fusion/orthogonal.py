"""FOT: an average that keeps out of the subspaces that all clients' inputs of old tasks lie in.

Y. F. Bakman, D. N. Yaldiz, Y. H. Ezzeldin and S. Avestimehr, "Federated Orthogonal Training: Mitigating
Global Catastrophic Forgetting in Continual Federated Learning", ICLR 2024, arXiv 2309.01289.

With A the inputs of a layer, of all clients side by side, and U ``[n, r]`` the basis of what is protected::

    Y_c = (A_c − U Uᵀ A_c) Ω_c          each client, at the end of a task; Ω_c uniform in [−1, 1]
    ρ_c = ‖A_c − U Uᵀ A_c‖² / ‖A_c‖²
    Σ_c Y_c = V Σ Wᵀ                    the server, which needs the sums alone
    U ← QR [U, v_1 … v_k]               smallest k with Σ_{i ≤ k} σ_i² ≥ (1 − (1 − ε)/ρ) ‖Σ_c Y_c‖²
    Δ ← Δ − Δ U Uᵀ                      in every round, Δ the step of the average

where ρ is the mean of ρ_c, weighted by samples. Ω has independent entries of one variance, so in expectation
the energies of Y are those of what U leaves of A, up to a factor; of those ``1 − (1 − ε)/ρ`` have to be
protected for U to hold ε of all. Energies are squares on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from fedkd.continual.subspace import number_needed, residual_directions
from fedkd.fusion.kinds import Kind
from fedkd.training.device import torch_threads

SKETCH, LEFT = "sketch/", "left/"
"""What a client sends of every layer, by its name: Y_c ``[n, width]``, and ρ_c."""


def kinds_of(upload: Iterable[str]) -> dict[str, Kind]:
    """Return what each array is that a client sends, by name."""
    return {name: Kind.FEATURES if name.startswith(SKETCH) else Kind.OTHER for name in upload}


def share_left(shares: Sequence[float], samples: Sequence[int]) -> float:
    """Return ρ in [0, 1]: the clients' shares of energy that is left, weighted by their samples.

    Args:
        shares: ρ_c.
        samples: Samples that each is about; without any, nothing is left.
    """
    if sum(samples) == 0:
        return 0.0
    return float(np.clip(np.average(shares, weights=samples), 0.0, 1.0))


def extended(basis: np.ndarray, sketch: np.ndarray, left: float, threshold: float) -> np.ndarray:
    """Return U with what of a task is to be protected besides, ``[n, r + k]`` orthonormal float32.

    Args:
        basis: U, ``[n, r]``.
        sketch: ``Σ_c Y_c``, ``[n, width]``.
        left: ρ.
        threshold: ε.
    """
    wanted = 1.0 - (1.0 - threshold) / left if left > 0.0 else 0.0
    if wanted <= 0.0 or basis.shape[1] == len(basis):
        return basis
    with torch_threads(1):  # how many threads share a sum decides its last bit
        columns = torch.from_numpy(sketch.astype(np.float64))
        directions, energies = residual_directions(columns, torch.from_numpy(basis.astype(np.float64)))
        count = number_needed(energies, wanted * float(columns.square().sum()))
        return np.concatenate([basis, directions[:, :count].numpy().astype(np.float32)], axis=1)


def outside(step: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return ``Δ − Δ U Uᵀ``, float64, shaped like Δ.

    Args:
        step: Δ, a layer's weight or what is added to it, ``[out, n]`` or a convolution's ``[out, c, h, w]``.
        basis: U, ``[n, r]``.
    """
    delta, columns = step.reshape(len(step), -1).astype(np.float64), basis.astype(np.float64)
    return (delta - (delta @ columns) @ columns.T).reshape(step.shape)
