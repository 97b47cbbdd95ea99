"""A learner's memory of supermasks: scores during training, bits afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Tensors
from fedkd.continual.masks import masks
from fedkd.continual.masks.masks import Rule
from fedkd.continual.state import LearnerState, TableField, Value


class MaskState(LearnerState):
    """Memory of supermask learners."""

    scores = TableField()
    """By slot and weight, while a mask is trained."""
    bits = TableField()
    """By slot and weight, of settled masks."""
    others = TableField()
    """Bits of weights that other clients trained in their earlier tasks, by weight."""
    free = TableField()
    """Bits of the present task's own weights, by weight, within the task."""
    free_share = TableField()
    """Share of a mask that no earlier one has, by slot."""
    overlap = TableField()
    """Share of a mask that each earlier one has too, by slot."""
    kkt = TableField()
    """The slot that lent its scores, by slot; −1: none."""
    kkt_accuracies = TableField()
    """k-NN accuracies of all candidates, by slot."""
    slots = Value()
    """The mask that every task was last trained with, ``[T]``; −1: none."""
    visits = TableField()
    """Tasks that a mask was trained on, ``[T]`` of 0 and 1, by slot."""


@dataclass(frozen=True)
class MaskMemory:
    """The masks on one client over the weights of all layers, by number (*slot*)."""

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

    @property
    def state(self) -> MaskState:
        """The record of all masks."""
        return MaskState(self.context)

    def has_scores(self, slot: int) -> bool:
        """Return whether a mask's scores are remembered."""
        return (slot, self.names[0]) in self.state.scores

    def scores(self, slot: int) -> Tensors:
        """Return a mask's remembered scores themselves."""
        return {name: self.state.scores[slot, name] for name in self.names}

    def set_scores(self, slot: int, scores: Tensors) -> None:
        """Remember a mask's scores."""
        self.state.scores.put(scores, slot)

    def fresh_scores(self, slot: int) -> Tensors:
        """Return the scores that a mask begins with, the same in every call."""
        generator = self.context.common_generator("scores", slot)
        return {
            name: masks.initial_scores(weight.shape, generator).to(self.context.device)
            for name, weight in self.weights.items()
        }

    def is_settled(self, slot: int) -> bool:
        """Return whether a mask is final: it is kept as bits."""
        return (slot, self.names[0]) in self.state.bits

    def has(self, slot: int) -> bool:
        """Return whether there is a mask, settled or in training."""
        return self.is_settled(slot) or self.has_scores(slot)

    def settle(self, slot: int, *, keep_scores: bool, again: bool = False) -> None:
        """Turn a mask's scores into bits; `again` repeats it for a settled mask."""
        if self.is_settled(slot) and not again:
            return
        for name, scores in self.scores(slot).items():
            self.state.bits[slot, name] = masks.pack(self._mask_of(scores))
            self.state.scores[slot, name] = scores.detach()
        if not keep_scores:
            self.state.scores.drop(slot)

    def masks(self, slot: int) -> Tensors:
        """Return a bool mask; a missing one comes from its initial scores."""
        if self.is_settled(slot):
            bits = self.state.bits
            return {name: masks.unpack(bits[slot, name], w.shape) for name, w in self.weights.items()}
        scores = self.scores(slot) if self.has_scores(slot) else self.fresh_scores(slot)
        return {name: self._mask_of(values) for name, values in scores.items()}

    def bits(self, slot: int) -> list[Tensor]:
        """Return a mask's bits, a tensor a layer."""
        if self.is_settled(slot):
            return [self.state.bits[slot, name] for name in self.names]
        return [masks.pack(mask) for mask in self.masks(slot).values()]

    def others(self) -> list[Tensor] | None:
        """Return bits of weights reserved for other clients, a tensor per layer; None: none."""
        others = self.state.others
        return [others[name] for name in self.names if name in others] or None

    def set_others(self, bits: Sequence[Tensor] | None) -> None:
        """Replace the weights reserved for other clients."""
        self.state.others.drop()
        if bits is not None:
            self.state.others.put(dict(zip(self.names, bits, strict=True)))

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

    def free_share(self, slot: int, earlier: Sequence[int]) -> float:
        """Return the share of a mask that none of the earlier ones has."""
        return masks.free_share(self.bits(slot), [self.bits(other) for other in earlier])

    def overlaps(self, slot: int, earlier: Sequence[int]) -> list[float]:
        """Return the share of a mask that each of the earlier ones has too."""
        own = self.bits(slot)
        return [masks.overlap(own, self.bits(other)) for other in earlier]

    def _mask_of(self, scores: Tensor) -> Tensor:
        return masks.mask_of(scores, self.rule, self.density)
