"""Layers whose weight moves in coordinates (see `fedkd.continual.moving`): when they do, and how it ends.

Only within the steps of an epoch: at its end, or before anything else is to change the weight, it is given
what it is owed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedkd.continual.layer_memory import LayerMemory, TrustRegion
from fedkd.continual.moving import Move, MovingScaling
from fedkd.continual.thin import ThinWeight
from fedkd.continual.thin_steps import most_inputs
from fedkd.continual.trgp import scaled_weight


def moving_weight(
    memory: LayerMemory, region: TrustRegion, make: Callable[[], MovingScaling]
) -> ThinWeight | None:
    """Return the weight of a layer with flexible tasks for steps of few inputs; None: a batch has too many.

    Args:
        memory: The layer's.
        region: What the present task scales.
        make: Returns its scales.
    """
    most = most_inputs(memory, region.basis.shape[1], rank=memory.basis.shape[1])
    if memory.context.batch_size > most:
        return None
    weight, scaling = memory.layer.module.weight, make()

    def effective() -> Tensor:
        return scaled_weight(weight + scaling.owed(), region, through=True)

    return ThinWeight.make(weight, effective, most, scaling)


def moving_scaling(memory: LayerMemory) -> MovingScaling:
    """Return the scales of a layer whose weight moves in coordinates now."""
    thin = _thin(memory)
    assert thin is not None and isinstance(thin.scaling, MovingScaling)
    return thin.scaling


def as_move(memory: LayerMemory, gradient: Tensor) -> Move | None:
    """Return the gradient of a step in two parts; None: the weight does not move in coordinates.

    Not any more, if the gradient is more than the product of the step's inputs.
    """
    thin = _thin(memory)
    if thin is None:
        return None
    factors = thin.factors_of(gradient)
    if factors is not None:
        return moving_scaling(memory).move(factors)
    settle(memory)
    assert memory.context.step_cache is not None
    memory.context.step_cache[memory.settled] = True
    return None


def settle(memory: LayerMemory) -> None:
    """Give a weight what it is owed, if it moves in coordinates, and have it move as a whole from now on."""
    if _thin(memory) is None:
        return
    with torch.no_grad():
        memory.layer.module.weight += moving_scaling(memory).owed()
    assert memory.context.step_cache is not None
    del memory.context.step_cache[memory.layer.name]


def _thin(memory: LayerMemory) -> ThinWeight | None:
    cache = memory.context.step_cache
    thin = None if cache is None else cache.get(memory.layer.name)
    return thin if isinstance(thin, ThinWeight) and isinstance(thin.scaling, MovingScaling) else None
