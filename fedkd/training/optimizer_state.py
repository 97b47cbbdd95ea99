"""The state of an optimiser as one flat table of named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fedkd.training.job import TrainJob
from fedkd.training.optimizer import OptimizerSpec

LOOSE = "tensor."
"""Begins the names of tensors that are trained and not the model's own, such as a learner's scores."""


def names_of(parameters: Sequence[Tensor], own: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return parameters by their names in a model; others are called ``tensor.<index>``."""
    names = {id(parameter): name for name, parameter in own}
    return {
        names.get(id(parameter), f"{LOOSE}{index}"): parameter for index, parameter in enumerate(parameters)
    }


def aux_names(job: TrainJob) -> dict[str, Tensor]:
    """Return the parameters of a job's auxiliary networks: ``beside/<network>/<parameter>``."""
    return {
        f"beside/{aux.name}/{name}": parameter
        for aux in job.aux_networks
        for name, parameter in aux.network.named_parameters()
        if parameter.requires_grad
    }


def optimizer_state(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of the named parameters, such as ``"exp_avg/head.weight"`` or ``"step/head.weight"``.

    The tensors are the optimiser's own. Adam and RMSprop have none of parameters without a gradient so far.
    """
    return {
        f"{slot}/{name}": value
        for name, parameter in named.items()
        if parameter in optimizer.state
        for slot, value in optimizer.state[parameter].items()
    }


def of_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a state that is of the model's own parameters."""
    return {name: value for name, value in state.items() if not name.partition("/")[2].startswith(LOOSE)}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    spec: OptimizerSpec,
    named: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> None:
    """Let a fresh optimiser continue from copies of a state.

    A parameter whose state is incomplete begins afresh: a learner may train other tensors, or with another
    optimiser, than before. Other entries are ignored.

    Args:
        optimizer: From `fedkd.training.optimizer.make_optimizer` with `spec`.
        state: From `optimizer_state`, in any memory layout and on any device.

    Raises:
        ValueError: A tensor's shape is not its parameter's.
    """
    for name, parameter in named.items():
        found = {slot: state[f"{slot}/{name}"] for slot in spec.slots if f"{slot}/{name}" in state}
        if len(found) < len(spec.slots):
            continue
        for slot, value in found.items():
            optimizer.state[parameter][slot] = (
                _counter(value, parameter, fused=bool(optimizer.defaults.get("fused")))
                if slot == "step"
                else _laid_out_like(parameter, value, f"{slot}/{name}")
            )


def _counter(value: Tensor, parameter: Tensor, *, fused: bool) -> Tensor:
    """Return a copy of a step counter, where the optimiser looks for it."""
    return value.detach().to(parameter.device if fused else "cpu", copy=True)


def _laid_out_like(parameter: Tensor, value: Tensor, name: str) -> Tensor:
    if value.shape != parameter.shape:
        shapes = f"{tuple(value.shape)}, its parameter {tuple(parameter.shape)}"
        raise ValueError(f"optimiser state {name} has the shape {shapes}")
    # Fused kernels pair elements by where they lie: a file knows nothing of channels last.
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
