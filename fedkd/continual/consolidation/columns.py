"""Columns: each task has an equal share of every layer's hidden units."""

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.masks.chain import chain_of, inputs_of, outputs_of


def unit_columns(context: LearnerContext) -> dict[str, Tensor]:
    """Return the task of each hidden unit ``[out]``, by weight and bias."""
    found: dict[str, Tensor] = {}
    for layer in chain_of(context.network)[:-1]:
        columns = _columns(outputs_of(layer), context)
        found[layer.weight_name] = columns
        if layer.module.bias is not None:
            found[layer.bias_name] = columns
    return found


def allowed_weights(context: LearnerContext, *, links: bool) -> dict[str, Tensor]:
    """Return the weights that columns may use, bool and shaped like each weight.

    A unit of task t reads units of task t, and with `links` those of earlier tasks. A head row belongs to the
    last task with its unit. All units read the network's inputs.
    """
    found: dict[str, Tensor] = {}
    before: Tensor | None = None
    for layer in chain_of(context.network):
        if layer.is_head:
            own = torch.zeros(outputs_of(layer), dtype=torch.int64, device=context.device)
            for task in range(context.tasks):
                own[context.units[task]] = task
        else:
            own = _columns(outputs_of(layer), context)
        if before is not None:
            # A channel becomes several inputs where it is flattened.
            read = before.repeat_interleave(inputs_of(layer) // len(before))
            allowed = read[None] <= own[:, None] if links else read[None] == own[:, None]
            weight = layer.module.weight
            found[layer.weight_name] = allowed.view(*allowed.shape, *[1] * (weight.dim() - 2)).expand_as(
                weight
            )
        before = own
    return found


def _columns(units: int, context: LearnerContext) -> Tensor:
    return torch.arange(units, device=context.device) * context.tasks // units
