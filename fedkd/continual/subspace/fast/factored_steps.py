"""Training steps of GPM and TRGP with factored gradients, chosen per layer once an epoch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor, nn

from fedkd.continual.context import LearnerContext
from fedkd.continual.fast_steps import StepForm
from fedkd.continual.learner import Tensors
from fedkd.continual.subspace.fast.factored_gradient import FactoredWeight, LearnedScaling, Scaling
from fedkd.continual.subspace.layer_memory import LayerMemory, TrustRegion, layer_memories

if TYPE_CHECKING:
    from fedkd.continual.subspace.gpm import GPM


G = TypeVar("G", bound="GPM")


class FactoredSteps(StepForm[G]):
    """Steps of `GPM` and of learners that also scale subspaces."""

    def parameters(self, learner: G, context: LearnerContext) -> Tensors:
        """Return factored weights of layers with few inputs, effective weights of the others."""
        cache, weights = context.step_cache, {}
        assert cache is not None
        for memory in layer_memories(context):
            name, factored = memory.layer.name, None
            if memory.protects:
                if name not in cache:
                    cache[name] = self.factored_weight(learner, memory)
                factored = cache[name]
            if factored is not None:
                factored.forget()
                weights[memory.layer.weight_name] = factored
                continue
            region = memory.trust_region(context.task)
            if region is not None:
                weight = memory.layer.module.weight
                weights[memory.layer.weight_name] = region.scaled(weight, through=bool(memory.flexible))
        return weights

    def factored_weight(self, learner: G, memory: LayerMemory) -> FactoredWeight | None:
        """Return a protected layer's weight for steps of few inputs; None: a batch has too many."""
        weight = memory.layer.module.weight  # in a step, the module's own is the factored one
        region = memory.trust_region(memory.context.task)
        most = max_inputs(memory, 0 if region is None else region.basis.shape[1])
        if memory.context.batch_size > most:
            return None
        if region is None:
            return FactoredWeight.make(weight, lambda: weight, most)
        through = bool(memory.flexible)
        kind = LearnedScaling if through else Scaling
        scaling = kind(weight.detach(), *_basis_and_places(memory, region), region.scales)
        return FactoredWeight.make(weight, lambda: region.scaled(weight, through=through), most, scaling)

    def gradients(self, learner: G, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Return gradients outside protected directions, from their factors where known."""
        projected = {}
        for memory in layer_memories(context):
            name = memory.layer.weight_name
            if name in gradients and memory.protects:
                product = _projected_product(memory, gradients[name])
                if product is not None:
                    projected[name] = product
        others = {name: gradient for name, gradient in gradients.items() if name not in projected}
        return {**others, **learner.projected(context, others), **projected}


def max_inputs(memory: LayerMemory, scaled: int = 0, rank: int | None = None) -> int:
    """Return the largest number of inputs at which factors are cheaper than the weight.

    It is 0 for a convolution. `scaled` directions are those of the weight's scales; `rank` counts the
    columns of projections, None those of the memory's.
    """
    if not isinstance(memory.layer.module, nn.Linear):
        return 0
    rank = memory.projection.rank if rank is None else rank
    outputs = memory.layer.module.out_features
    # The gradient takes two products with the projection's basis, and three with that of the scales. The
    # inputs take two, and one, and one with the gradient of the outputs.
    return outputs * (2 * rank + 3 * scaled) // (2 * rank + scaled + outputs)


def _basis_and_places(memory: LayerMemory, region: TrustRegion) -> tuple[Tensor, Sequence[Tensor]]:
    """Return a basis with all columns of a region, if possible the projection's, and their places."""
    projection = memory.projection
    if projection.onto or projection.basis.shape[1] != memory.basis.shape[1]:
        return region.basis, region.places
    return projection.basis, memory.places(memory.related(memory.context.task))


def _projected_product(memory: LayerMemory, gradient: Tensor) -> Tensor | None:
    """Return ``δᵀ (X − X B Bᵀ)``; None: the factors of the gradient are not known."""
    cache, projection = memory.context.step_cache, memory.projection
    weight: FactoredWeight | None = None if cache is None else cache.get(memory.layer.name)
    factors = None if weight is None else weight.factors_of(gradient)
    if weight is None or factors is None:
        return None
    scaling = weight.scaling
    if factors.inside is not None and scaling is not None and scaling.basis is projection.basis:
        return factors.outputs.T @ projection.less(factors.inputs, factors.inside)
    return factors.outputs.T @ projection(factors.inputs)
