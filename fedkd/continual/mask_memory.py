"""Where supermasks lie in a learner's memory: scores while they are trained, bits afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedkd.continual import masks
from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Tensors
from fedkd.continual.masks import Rule

SCORES, BITS = "scores", "bits"
OTHERS = "others"
"""The bits of weights that other clients have trained in earlier tasks of theirs."""


@dataclass(frozen=True)
class MaskMemory:
    """The masks on one client, each over the weights of all layers, by their numbers (*slots*).

    Attributes:
        context: The client's.
        rule: How scores make a mask.
        density: Share of a layer's weights in a mask, for the rule that wants it.
    """

    context: LearnerContext
    rule: Rule
    density: float

    @property
    def names(self) -> list[str]:
        """Names of the weights under masks, in the network's order."""
        return [layer.weight_name for layer in self.context.layers.values()]

    @property
    def weights(self) -> Tensors:
        """The weights under masks."""
        return {layer.weight_name: layer.module.weight for layer in self.context.layers.values()}

    @property
    def sizes(self) -> list[int]:
        """Number of weights of each layer."""
        return [weight.numel() for weight in self.weights.values()]

    # Scores -------------------------------------------------------------------------------------------

    def has_scores(self, slot: int) -> bool:
        """Return whether a mask's scores are remembered."""
        return f"{SCORES}/{slot}/{self.names[0]}" in self.context.memory

    def scores(self, slot: int) -> Tensors:
        """Return a mask's remembered scores themselves."""
        return {name: self.context.memory[f"{SCORES}/{slot}/{name}"] for name in self.names}

    def set_scores(self, slot: int, scores: Tensors) -> None:
        """Remember a mask's scores."""
        for name, values in scores.items():
            self.context.memory[f"{SCORES}/{slot}/{name}"] = values

    def fresh_scores(self, slot: int) -> Tensors:
        """Return the scores that a mask begins with, the same whenever they are asked for."""
        generator = self.context.common_generator(SCORES, slot)
        return {
            name: masks.initial_scores(weight.shape, generator).to(self.context.device)
            for name, weight in self.weights.items()
        }

    # Masks --------------------------------------------------------------------------------------------

    def is_settled(self, slot: int) -> bool:
        """Return whether a mask will not change any more: it is kept as bits."""
        return f"{BITS}/{slot}/{self.names[0]}" in self.context.memory

    def has(self, slot: int) -> bool:
        """Return whether there is a mask, settled or in training."""
        return self.is_settled(slot) or self.has_scores(slot)

    def settle(self, slot: int, *, keep_scores: bool) -> None:
        """Turn a mask's scores into bits, unless that has been done."""
        if self.is_settled(slot):
            return
        for name, scores in self.scores(slot).items():
            self.context.memory[f"{BITS}/{slot}/{name}"] = masks.pack(self._mask_of(scores))
            if keep_scores:
                self.context.memory[f"{SCORES}/{slot}/{name}"] = scores.detach()
            else:
                del self.context.memory[f"{SCORES}/{slot}/{name}"]

    def settle_again(self, slot: int) -> None:
        """Turn the kept scores of a settled mask into its bits once more."""
        for name, scores in self.scores(slot).items():
            self.context.memory[f"{BITS}/{slot}/{name}"] = masks.pack(self._mask_of(scores))
            self.context.memory[f"{SCORES}/{slot}/{name}"] = scores.detach()

    def masks(self, slot: int) -> Tensors:
        """Return a mask, bool; one that is not there yet is that of its first scores."""
        if self.is_settled(slot):
            memory = self.context.memory
            return {
                name: masks.unpack(memory[f"{BITS}/{slot}/{name}"], weight.shape)
                for name, weight in self.weights.items()
            }
        scores = self.scores(slot) if self.has_scores(slot) else self.fresh_scores(slot)
        return {name: self._mask_of(values) for name, values in scores.items()}

    def bits(self, slot: int) -> list[Tensor]:
        """Return a mask's bits, a tensor a layer."""
        if self.is_settled(slot):
            return [self.context.memory[f"{BITS}/{slot}/{name}"] for name in self.names]
        return [masks.pack(mask) for mask in self.masks(slot).values()]

    # Others -------------------------------------------------------------------------------------------

    def others(self) -> list[Tensor] | None:
        """Return the bits, a tensor a layer, of weights that are closed for others' sake; None: of none."""
        memory = self.context.memory
        found = [memory[f"{OTHERS}/{name}"] for name in self.names if f"{OTHERS}/{name}" in memory]
        return found or None

    def set_others(self, bits: Sequence[Tensor] | None) -> None:
        """Remember, in place of what was, which weights are closed for others' sake."""
        for layer, name in enumerate(self.names):
            if bits is None:
                self.context.memory.pop(f"{OTHERS}/{name}", None)
            else:
                self.context.memory[f"{OTHERS}/{name}"] = bits[layer]

    # Weights ------------------------------------------------------------------------------------------

    def masked_weights(self, slot: int) -> Tensors:
        """Return the weights under a mask, with gradients for the weights."""
        own = self.masks(slot)
        return {name: masks.masked(weight, own[name]) for name, weight in self.weights.items()}

    def trainable_mask(self, slot: int) -> Tensors:
        """Return the weights under a mask, with gradients for its scores."""
        scores = self.scores(slot)
        return {
            name: masks.straight_through(weight, scores[name], self.rule, self.density)
            for name, weight in self.weights.items()
        }

    # Figures ------------------------------------------------------------------------------------------

    def free_share(self, slot: int, earlier: Sequence[int]) -> float:
        """Return the share of a mask that none of the earlier ones has."""
        return masks.free_share(self.bits(slot), [self.bits(other) for other in earlier])

    def overlaps(self, slot: int, earlier: Sequence[int]) -> list[float]:
        """Return the share of a mask that each of the earlier ones has too."""
        own = self.bits(slot)
        return [masks.overlap(own, self.bits(other)) for other in earlier]

    def _mask_of(self, scores: Tensor) -> Tensor:
        return masks.mask_of(scores, self.rule, self.density)
