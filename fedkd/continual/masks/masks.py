"""Binary masks over weights: from scores to masks, their training, storage and statistics.

A supermask (Zhou et al., "Deconstructing Lottery Tickets", NeurIPS 2019; Ramanujan et al., "What's Hidden in
a Randomly Weighted Neural Network?", CVPR 2020) selects weights of a layer by trained scores.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Rule = Literal["topk", "threshold"]
BITS = 8


def initial_scores(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return Kaiming-uniform scores with a = √5, in ±1/√fan_in, of a weight's `shape` `[out, ...]`."""
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(*shape).uniform_(-bound, bound, generator=generator)


def signed_constant(weight: Tensor) -> Tensor:
    """Return ``sign(w) · √2/√fan_in`` of a weight `[out, ...]`; a zero counts as positive."""
    size = math.sqrt(2.0) / math.sqrt(weight[0].numel())
    return torch.where(weight < 0, -size, size).to(weight.dtype)


def mask_of(scores: Tensor, rule: Rule, density: float) -> Tensor:
    """Return the mask, bool, of a layer's n scores.

    ``"topk"`` takes the ``max(1, round(density · n))`` weights of largest |score|, the first of equal ones,
    ``"threshold"`` all of score ≥ 0.
    """
    if rule == "threshold":
        return scores >= 0
    sizes = scores.detach().abs().flatten()
    count = max(1, round(density * len(sizes)))
    # Finding one value is quicker than a sort, and torch.topk breaks ties by itself.
    smallest = sizes.kthvalue(len(sizes) - count + 1).values
    larger = sizes > smallest
    equal = sizes == smallest
    chosen = larger | (equal & (equal.cumsum(0) <= count - larger.sum()))
    return chosen.view_as(scores)


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """Return a weight with zeros outside the mask; a product would yield −0."""
    return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


class _StraightThrough(torch.autograd.Function):
    """A masked weight whose gradient reaches the scores as if the mask were the score itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, weight: Tensor, mask: Tensor, signed: bool) -> Tensor:
        return masked(weight, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
        scores, weight, _, ctx.signed = inputs
        ctx.save_for_backward(scores, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        scores, weight = ctx.saved_tensors
        slope = gradients[0] * weight
        return (slope * scores.sign() if ctx.signed else slope), None, None, None


def straight_through(weight: Tensor, scores: Tensor, rule: Rule, density: float) -> Tensor:
    """Return the masked weight, with a gradient for the scores alone.

    ``∂L/∂s = ∂L/∂w̃ · w`` by `threshold`, times ``sign(s)`` by `topk`. Masked weights get it too.
    """
    mask = mask_of(scores, rule, density)
    return _StraightThrough.apply(scores, weight.detach(), mask, rule == "topk")


def agreed_scores(scores: Tensor, log_odds: Tensor, rule: Rule) -> Tensor:
    """Return scores whose mask follows the clients' log-odds; own scores break ties.

    The scores' magnitudes are reassigned. With `topk` the largest go to the highest log-odds; ties go to the
    largest own score, then to the first; signs stay. With `threshold` signs are those of the log-odds; at 0,
    the score's own. `log_odds` are above 0 if more than half of all masks have the weight.
    """
    sizes = scores.abs()
    if rule == "threshold":
        # A zero, negative or not, would count as in.
        out = -sizes.clamp_min(torch.finfo(sizes.dtype).tiny)
        return torch.where(log_odds > 0, sizes, torch.where(log_odds < 0, out, scores))
    own = sizes.detach().flatten().float().cpu().numpy()
    ranked = np.empty_like(own)
    ranked[_ranking(log_odds.flatten().float().cpu().numpy(), own)] = np.sort(own)[::-1]
    return torch.from_numpy(ranked).to(sizes).view_as(scores).copysign(scores)


def _ranking(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the order of `first` ``[n]`` float32, largest first; ties by `second`, ≥ 0, then by place.

    Both numbers are packed into one for a single sort; the few ties are corrected afterwards.
    """
    high = (first + np.float32(0.0)).view(np.int32)  # a zero has one sign then
    high = np.where(high < 0, high ^ np.int32(0x7FFFFFFF), high).astype(np.int64)
    keys = ~((high << 32) | second.view(np.int32))
    order = np.argsort(keys)
    keys = keys[order]
    same = keys[1:] == keys[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    order[tied] = order[tied][np.lexsort((order[tied], keys[tied]))]
    return order


def pack(mask: Tensor) -> Tensor:
    """Return a mask's bits `[⌈n/8⌉]` uint8, as `numpy.packbits` orders them."""
    flat = mask.flatten().to(torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % BITS)]).view(-1, BITS)
    powers = 2 ** torch.arange(BITS - 1, -1, -1, dtype=torch.uint8, device=mask.device)
    return (flat * powers).sum(dim=1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the mask, bool, of a `shape` whose bits were packed."""
    shifts = torch.arange(BITS - 1, -1, -1, dtype=torch.uint8, device=bits.device)
    flat = (bits[:, None] >> shifts & 1).flatten()
    return flat[: math.prod(shape)].view(*shape).bool()


def free(bits: Tensor, earlier: Sequence[Tensor]) -> Tensor:
    """Return the bits of ``M ∧ ¬(M_1 ∨ … ∨ M_{t−1})``: weights that no earlier task's mask has."""
    remaining = bits.clone()
    for other in earlier:
        remaining &= ~other
    return remaining


def ones(bits: Tensor) -> int:
    """Return the number of weights in a mask."""
    pairs = bits - (bits >> 1 & 0x55)  # ones of every two bits, then of every four, then of all eight
    fours = (pairs & 0x33) + (pairs >> 2 & 0x33)
    return int(((fours + (fours >> 4)) & 0x0F).sum(dtype=torch.int64))


def density_of(masks: Sequence[Tensor], weights: int) -> float:
    """Return the share of all `weights` in the packed masks, one per layer."""
    return sum(ones(bits) for bits in masks) / weights


def overlap(masks: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return ``|M ∧ M'| / |M|`` over all packed layers; 0 of an empty mask."""
    own = sum(ones(bits) for bits in masks)
    both = sum(ones(bits & other) for bits, other in zip(masks, others, strict=True))
    return both / own if own else 0.0


def free_share(masks: Sequence[Tensor], earlier: Sequence[Sequence[Tensor]]) -> float:
    """Return the share of a mask's weights that no earlier mask has, over all layers; 0 of an empty mask.

    It is (1 − d)^(t−1) of t independent masks of density d.
    """
    own = sum(ones(bits) for bits in masks)
    unclaimed = sum(ones(free(bits, [other[layer] for other in earlier])) for layer, bits in enumerate(masks))
    return unclaimed / own if own else 0.0


def coded_bits(masks: Sequence[Tensor], sizes: Sequence[int]) -> float:
    """Return the bits per weight of an entropy coder with the density of each layer.

    ``Σ_l n_l · h(d_l) / Σ_l n_l`` with ``h(d) = −d·log₂d − (1−d)·log₂(1−d)``: 0.47 at d = 0.1.
    """
    total = 0.0
    for bits, size in zip(masks, sizes, strict=True):
        share = ones(bits) / size
        total -= size * sum(p * math.log2(p) for p in (share, 1.0 - share) if p > 0.0)
    return total / sum(sizes)
