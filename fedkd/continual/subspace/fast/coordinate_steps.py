"""Training steps of CUBER in coordinates of the protected subspace.

The pending change is added to the weight at the end of an epoch, or before any other change of the weight.
Regimes are decided before any change, so that a recorded step can check them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Tensors
from fedkd.continual.mixins import StepObserver
from fedkd.continual.subspace.fast.factored_gradient import FactoredWeight
from fedkd.continual.subspace.fast.factored_steps import FactoredSteps, max_inputs
from fedkd.continual.subspace.fast.subspace_coordinates import (
    Agreement,
    GradientParts,
    SubspaceCoordinates,
    agree,
)
from fedkd.continual.subspace.layer_memory import LayerMemory, layer_memories

if TYPE_CHECKING:
    from fedkd.continual.subspace.cuber import CUBER


class CoordinateSteps(FactoredSteps["CUBER"]):
    """Steps of `CUBER` on a CPU: by plain SGD, weights of layers with tasks in R3 move in coordinates."""

    def applies(self, learner: CUBER, memory: LayerMemory) -> bool:
        """Return whether projected SGD steps are a weight's only changes so far.

        The first step of an epoch shows whether anything else takes part (`_parts_of`).
        """
        cache = memory.context.step_cache
        if cache is None or _moves_whole(memory) in cache or learner.drifts(memory.context):
            return False
        if memory.context.device.type != "cpu":  # elsewhere large products cost less than many small ones
            return False
        # Classes derived from CUBER may change weights by other means.
        return not (learner.overrides("penalty") or isinstance(learner, StepObserver))

    def factored_weight(self, learner: CUBER, memory: LayerMemory) -> FactoredWeight | None:
        """Return the weight in factored form, in coordinates where these apply."""
        region = memory.trust_region(memory.context.task)
        if region is None or not memory.flexible or not self.applies(learner, memory):
            return super().factored_weight(learner, memory)
        most = max_inputs(memory, region.basis.shape[1], rank=memory.basis.shape[1])
        if memory.context.batch_size > most:
            return super().factored_weight(learner, memory)
        weight = memory.layer.module.weight
        rate, strength = learner.rate(memory.context), learner.strength
        coordinates = SubspaceCoordinates(
            memory, region, rate=rate, strength=strength, correlation=learner.correlation
        )

        def effective() -> Tensor:
            return region.scaled(weight + coordinates.pending(), through=True)

        return FactoredWeight.make(weight, effective, most, coordinates)

    def gradients(self, learner: CUBER, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Return gradients outside protected directions, with the λ term; coordinates take their step."""
        flexible = {
            memory.layer.weight_name: memory
            for memory in layer_memories(context)
            if memory.layer.weight_name in gradients and memory.flexible
        }
        parts = self._decide(learner, flexible, gradients)
        filtered = super().gradients(learner, context, {n: g for n, g in gradients.items() if n not in parts})
        for name, memory in flexible.items():
            if name in parts:
                _coordinates(memory).advance(parts[name].inside)
                filtered[name] = parts[name].outside
            else:
                held = learner.held_back(memory, memory.layer.matrix(filtered[name]))
                filtered[name] = held.view_as(filtered[name])
        return filtered

    def _decide(
        self, learner: CUBER, flexible: dict[str, LayerMemory], gradients: Tensors
    ) -> dict[str, GradientParts]:
        """Move R3 tasks that disagree with a step to R2; return the gradients in coordinates."""
        parts: dict[str, GradientParts] = {}
        agreements: dict[str, Agreement] = {}
        for name, memory in flexible.items():
            found = _parts_of(memory, gradients[name])
            if found is None:
                matrix = memory.layer.matrix(gradients[name])
                agreeing = [learner.agree(memory, old, matrix) for old in memory.flexible]
                self._move_to_forward(learner, memory, agreeing)
            else:
                parts[name], agreements[name] = found, _coordinates(memory).agreement(found)
        if agreements and not bool(agree(*map(list, zip(*agreements.values(), strict=True)))):
            for name, agreement in agreements.items():
                agreeing = agreement.holds()
                if not all(agreeing):
                    settle(flexible[name])
                    self._move_to_forward(learner, flexible[name], agreeing)
                    del parts[name]
        return parts

    def _move_to_forward(self, learner: CUBER, memory: LayerMemory, agreeing: Sequence[bool]) -> None:
        failed = [old for old, lets in zip(memory.flexible, agreeing, strict=True) if not lets]
        if failed:
            learner.move_to_forward(memory, failed)
            assert memory.context.step_cache is not None
            memory.context.step_cache.pop(memory.layer.name, None)  # it was made for another projection

    def end(self, learner: CUBER, context: LearnerContext) -> None:
        for memory in layer_memories(context):
            settle(memory)


def settle(memory: LayerMemory) -> None:
    """Add the pending change to a weight, and leave coordinates."""
    weight = _weight_in_coordinates(memory)
    if weight is None:
        return
    with torch.no_grad():
        memory.layer.module.weight += _coordinates(memory).pending()
    assert memory.context.step_cache is not None
    del memory.context.step_cache[memory.layer.name]


def _parts_of(memory: LayerMemory, gradient: Tensor) -> GradientParts | None:
    """Return the gradient of a step in two parts; None: the weight leaves coordinates."""
    weight = _weight_in_coordinates(memory)
    if weight is None:
        return None
    factors = weight.factors_of(gradient)
    if factors is not None:
        return _coordinates(memory).parts(factors)
    settle(memory)
    assert memory.context.step_cache is not None
    memory.context.step_cache[_moves_whole(memory)] = True
    return None


def _moves_whole(memory: LayerMemory) -> str:
    """Return the step cache's name for the mark that a weight left coordinates."""
    return f"settled/{memory.layer.name}"


def _coordinates(memory: LayerMemory) -> SubspaceCoordinates:
    weight = _weight_in_coordinates(memory)
    assert weight is not None and isinstance(weight.scaling, SubspaceCoordinates)
    return weight.scaling


def _weight_in_coordinates(memory: LayerMemory) -> FactoredWeight | None:
    cache = memory.context.step_cache
    weight = None if cache is None else cache.get(memory.layer.name)
    coordinates = isinstance(weight, FactoredWeight) and isinstance(weight.scaling, SubspaceCoordinates)
    return weight if coordinates else None
