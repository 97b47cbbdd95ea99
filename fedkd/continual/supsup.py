"""SupSup: fixed random weights, and a mask of them for every task."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass

from fedkd.continual.supermask import SupermaskLearner
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class SupSup(SupermaskLearner):
    """Train no weight, only which of them take part in a task.

    ::

        w     = sign(w_0) · √2/√fan_in            for good
        M_t   = top `density` share of |S_t| in each layer, or S_t ≥ 0
        f_t   = f(x; w ⊙ M_t)                      gradients go straight through to the scores S_t

    Nothing is ever forgotten: the outputs for a task are the same bits as when it ended. What a mask of
    untrained weights can reach is the limit, so widen the network rather than train longer. Where the task of
    a sample is not given it is inferred: ``argmin_i ∂H/∂α_i`` with H the entropy of
    ``softmax f(x; w ⊙ Σ_i α_i M_i)`` at α = 1/k.
    """

    name: ClassVar[str] = "supsup"
    paper: ClassVar[str] = "Wortsman et al., Supermasks in Superposition, NeurIPS 2020, arXiv 2006.14769"
