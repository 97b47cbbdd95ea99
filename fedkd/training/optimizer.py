"""Optimisers, and the learning rate of a round and of a step."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from fedkd.errors import UserError, did_you_mean, refuse_if
from fedkd.training.fast.uncompiled import uncompiled_class

OPTIMIZERS = ("adam", "adamw", "rmsprop", "sgd")
SCHEDULES = ("constant", "cosine", "step", "exponential")


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimiser's name (`OPTIMIZERS`) and its hyper-parameters.

    Attributes:
        momentum: Momentum μ of `sgd`, ``v ← μv + g``, ``w ← w − lr·v``, and of `rmsprop`, which first divides
            g by the root of its moving mean square (0.99 kept per step).
        weight_decay: λ: adds ``λw`` to the gradient (`sgd`, `adam`, `rmsprop`) or shrinks ``w`` by ``lr·λ·w``
            (`adamw`).
        clip_norm: Largest norm of the gradient, which is scaled down to it; None: no limit.
    """

    name: str
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state of every parameter, in torch's terms."""
        momentum = ("momentum_buffer",) if self.momentum > 0.0 else ()
        if self.name == "sgd":
            return momentum
        if self.name == "rmsprop":
            return ("step", "square_avg", *momentum)
        return ("step", "exp_avg", "exp_avg_sq")


def make_optimizer(
    spec: OptimizerSpec,
    parameters: Iterable[Tensor],
    beside: Sequence[tuple[Sequence[Tensor], float | None]] = (),
) -> torch.optim.Optimizer:
    """Return a fresh optimiser of the trainable parameters; a `UserError` for unknown names.

    Fused kernels update all parameters in one call, a fifth to a third faster for Adam and small
    convolutional models. torch has none for RMSprop. Parameters `beside` have their own learning rate; None:
    that of `spec`.
    """
    optimizer = _of_parameters(spec, parameters)
    for others, lr in beside:
        optimizer.add_param_group({"params": list(others), "lr": spec.lr if lr is None else lr})
    if spec.name == "sgd" and spec.momentum > 0.0:
        # The kernel fails if only some parameters have had a gradient, unless all have a momentum.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _of_parameters(spec: OptimizerSpec, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    common: dict[str, Any] = {"lr": spec.lr, "weight_decay": spec.weight_decay}
    if spec.name == "sgd":
        return uncompiled_class(torch.optim.SGD)(trainable, momentum=spec.momentum, fused=True, **common)
    if spec.name == "adam":
        return uncompiled_class(torch.optim.Adam)(trainable, fused=True, **common)
    if spec.name == "adamw":
        return uncompiled_class(torch.optim.AdamW)(trainable, fused=True, **common)
    if spec.name == "rmsprop":
        return uncompiled_class(torch.optim.RMSprop)(trainable, momentum=spec.momentum, **common)
    told = f"no optimizer named '{spec.name}'; {did_you_mean(spec.name, OPTIMIZERS)}"
    raise UserError(told, key="training.optimizer")


def begin_adam(optimizer: torch.optim.Optimizer) -> bool:
    """Make the state before the first step of a fused Adam, as it would itself; False: it is another one."""
    if not isinstance(optimizer, torch.optim.Adam) or not optimizer.defaults["fused"]:
        return False
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        moments = {slot: torch.zeros_like(parameter) for slot in ("exp_avg", "exp_avg_sq")}
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        optimizer.state[parameter] = {"step": step, **moments}
    return True


def step_schedule(optimizer: torch.optim.Optimizer, name: str, steps: int) -> LRScheduler | None:
    """Return the schedule of the learning rate from step to step; None: it is constant.

    ``"cosine"`` is ``lr · ½(1 + cos(π s / S))`` after s of at most S = `steps` steps. Other names are a
    `ValueError`.
    """
    if name == "constant":
        return None
    if name == "cosine":
        return CosineAnnealingLR(optimizer, max(steps, 1))
    raise ValueError(f"no schedule of steps named '{name}'; {did_you_mean(name, ('constant', 'cosine'))}")


@dataclass(frozen=True)
class LrSchedule:
    """The learning rate from round to round; a wrong name or number is a `UserError`.

    Attributes:
        name: With lr the learning rate of round 1, round r of R has

            - ``"constant"``: lr;
            - ``"cosine"``: ``lr · ½(1 + cos(π (r − 1) / R))`` (Loshchilov & Hutter 2017, without restarts);
            - ``"step"``: ``lr · decay^⌊(r − 1) / step_rounds⌋``;
            - ``"exponential"``: ``lr · decay^(r − 1)``.
        decay: Factor in (0, 1]; None: 0.1, or 0.99 for `exponential`.
        step_rounds: Rounds between two drops, ≥ 1.
    """

    name: str = "constant"
    decay: float | None = None
    step_rounds: int = 1

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            told = f"no schedule named '{self.name}'; {did_you_mean(self.name, SCHEDULES)}"
            raise UserError(told, key="training.schedule")
        refuse_if(not 0.0 < self.factor <= 1.0, f"must be > 0 and ≤ 1, got {self.decay}", "training.lr_decay")
        refuse_if(self.step_rounds < 1, f"must be ≥ 1, got {self.step_rounds}", "training.lr_step_rounds")

    @property
    def factor(self) -> float:
        """Factor of the learning rate at every drop."""
        if self.decay is not None:
            return self.decay
        return 0.99 if self.name == "exponential" else 0.1


def round_lr(lr: float, schedule: LrSchedule, round: int, rounds: int) -> float:
    """Return the learning rate of a 1-based round, given that of round 1."""
    if schedule.name == "cosine":
        return lr * 0.5 * (1.0 + math.cos(math.pi * (round - 1) / rounds))
    if schedule.name == "step":
        return lr * schedule.factor ** ((round - 1) // schedule.step_rounds)
    if schedule.name == "exponential":
        return lr * schedule.factor ** (round - 1)
    return lr
