"""Training steps of few inputs: when inputs are transformed in the place of weights and gradients.

Which it is, is decided once an epoch for every protected layer, and kept in the context's step cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from fedkd.continual.context import LearnerContext
from fedkd.continual.layer_memory import LayerMemory, TrustRegion, layer_memories
from fedkd.continual.learner import Tensors
from fedkd.continual.thin import LearnedScaling, Scaling, ThinWeight


def most_inputs(memory: LayerMemory, scaled: int = 0, rank: int | None = None) -> int:
    """Return up to how many inputs it takes less to transform those than the weight and its gradient.

    Args:
        memory: Of a protected layer; 0 if it is a convolution, which has many inputs.
        scaled: Number of directions in which the weight is scaled.
        rank: Number of columns that gradients are projected with; None: those of the memory's projection.
    """
    if not isinstance(memory.layer.module, nn.Linear):
        return 0
    rank = memory.projection.rank if rank is None else rank
    outputs = memory.layer.module.out_features
    # The gradient takes two products with the projection's basis, and three with that of the scales. The
    # inputs take two, and one, and one with the gradient of the outputs.
    return outputs * (2 * rank + 3 * scaled) // (2 * rank + scaled + outputs)


def thin_weight(
    memory: LayerMemory,
    region: TrustRegion | None = None,
    effective: Callable[[], Tensor] | None = None,
    *,
    through: bool = False,
) -> ThinWeight | None:
    """Return a protected layer's weight for steps of few inputs; None: a batch has too many.

    Args:
        memory: The layer's.
        region: What the present task scales, if anything.
        effective: Gives the scaled weight ``w̃``, with a graph; None: w itself.
        through: Whether the weight's gradient goes through the scales.
    """
    weight = memory.layer.module.weight
    most = most_inputs(memory, 0 if region is None else region.basis.shape[1])
    if memory.context.batch_size > most:
        return None
    scaling = None
    if region is not None:
        kind = LearnedScaling if through else Scaling
        scaling = kind(weight.detach(), *_within(memory, region), region.scales)
    return ThinWeight.make(weight, effective or (lambda: weight), most, scaling)


def _within(memory: LayerMemory, region: TrustRegion) -> tuple[Tensor, Sequence[Tensor]]:
    """Return a basis that has all columns of a region, and where.

    If gradients are projected out of all that is protected, it is the basis of that: a step's inputs have to
    be multiplied by it anyway.
    """
    project = memory.projection
    if project.onto or project.basis.shape[1] != memory.basis.shape[1]:
        return region.basis, region.places
    return project.basis, memory.places(memory.related(memory.context.task))


def thin_weights(context: LearnerContext, make: Callable[[LayerMemory], ThinWeight | None]) -> Tensors:
    """Return the weights of the protected layers that have few inputs; in training steps only.

    Args:
        context: The client's.
        make: Returns a protected layer's (see `thin_weight`); asked once an epoch.
    """
    weights: Tensors = {}
    cache = context.step_cache
    if cache is None:
        return weights
    for memory in layer_memories(context):
        if memory.protects:
            name = memory.layer.name
            if name not in cache:
                cache[name] = make(memory)
            weight = cache[name]
            if weight is not None:
                weight.forget()
                weights[memory.layer.weight_name] = weight
    return weights


def leave_protected(memory: LayerMemory, gradient: Tensor) -> Tensor:
    """Return a protected layer's gradient, or change, outside of what is held: ``∇ − ∇ B Bᵀ``."""
    cache, layer, project = memory.context.step_cache, memory.layer, memory.projection
    thin: ThinWeight | None = cache.get(layer.name) if cache is not None else None
    factors = thin.factors_of(gradient) if thin is not None else None
    if thin is None or factors is None:
        return project(layer.matrix(gradient)).view_as(gradient)
    inputs = factors.inputs
    scaling = thin.scaling
    if factors.inside is not None and scaling is not None and scaling.basis is project.basis:
        return factors.outputs.T @ project.less(inputs, factors.inside)
    return factors.outputs.T @ project(inputs)
