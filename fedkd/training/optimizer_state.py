"""The state of an optimiser as one flat table of named tensors."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fedkd.training.job import TrainJob
from fedkd.training.optimizer import OptimizerSpec

LOOSE = "tensor."
"""Prefix of the names of trained tensors outside the model, such as a learner's scores."""


def names_of(parameters: Sequence[Tensor], own: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return parameters by their names in a model; others are named ``tensor.<index>``."""
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
    """Return the optimiser's own state tensors by names such as ``"exp_avg/head.weight"``."""
    return {
        f"{slot}/{name}": value
        for name, parameter in named.items()
        if parameter in optimizer.state
        for slot, value in optimizer.state[parameter].items()
    }


def model_optimizer_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of the model's own parameters."""
    return {name: value for name, value in state.items() if not name.partition("/")[2].startswith(LOOSE)}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    spec: OptimizerSpec,
    named: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> None:
    """Load copies of an `optimizer_state`, of any layout and device, into a fresh optimiser.

    A parameter with incomplete state starts afresh, since a learner may change the trained tensors or the
    optimiser. Other entries are ignored. A wrong shape is a `ValueError`.
    """
    for name, parameter in named.items():
        found = {slot: state[f"{slot}/{name}"] for slot in spec.slots if f"{slot}/{name}" in state}
        if len(found) < len(spec.slots):
            continue
        fused = bool(optimizer.defaults.get("fused"))
        for slot, value in found.items():
            if slot == "step":
                state_of = value.detach().to(parameter.device if fused else "cpu", copy=True)
            else:
                state_of = _laid_out_like(parameter, value, f"{slot}/{name}")
            optimizer.state[parameter][slot] = state_of


def _laid_out_like(parameter: Tensor, value: Tensor, name: str) -> Tensor:
    if value.shape != parameter.shape:
        shapes = f"{tuple(value.shape)}, its parameter {tuple(parameter.shape)}"
        raise ValueError(f"optimiser state {name} has the shape {shapes}")
    # Fused kernels pair elements by memory position, and files do not store channels last.
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
