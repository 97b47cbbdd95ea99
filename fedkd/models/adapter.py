"""Low-rank adapters (LoRA): frozen layers with trained low-rank changes of their weights.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685.
"""

import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedkd.errors import refuse_if
from fedkd.plugins import show_value
from fedkd.scenario import Adapter

KINDS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "conv": (nn.Conv2d,),
    "all": (nn.Linear, nn.Conv2d),
}


class LowRank(nn.Module):
    """Maps a weight W ``[m, ...]`` to ``W + scale · B A``, with A ``[r, n]`` and B ``[m, r]``, at first 0."""

    recordable: ClassVar[bool] = True

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.lora_A = nn.Parameter(torch.empty(rank, weight[0].numel()))
        self.lora_B = nn.Parameter(torch.zeros(len(weight), rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight."""
        return weight + (self.scale * (self.lora_B @ self.lora_A)).reshape(weight.shape)

    def extra_repr(self) -> str:
        """Return the scale, which tells equal shapes apart."""
        return f"scale={self.scale}"


def add_adapter(model: nn.Module, adapter: Adapter, name: str) -> None:
    """Freeze a network and add trained adapters in place, with draws from torch's generator.

    The head is the layer `head`, or the last linear layer. If it is trained, it gets no adapter.
    """
    linear = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    head = "head" if hasattr(model, "head") else next(reversed(linear), "")
    wanted = adapter.targets
    kinds = KINDS[wanted] if isinstance(wanted, str) else KINDS["all"]
    patterns = ["*"] if isinstance(wanted, str) else wanted
    layers = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, kinds)
        and not parametrize.is_parametrized(layer)
        and not (adapter.train_head and (path == head or path.startswith(f"{head}.")))
        and any(fnmatchcase(path, pattern) for pattern in patterns)
    }
    besides = " besides its trained head" if adapter.train_head else ""
    told = f"matches no linear or convolutional layer of '{name}'{besides}, got {show_value(wanted)}"
    refuse_if(not layers, told, "clients.adapter.targets")
    model.requires_grad_(False)
    for path, layer in layers.items():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        most = min(len(weight), weight[0].numel())
        told = f"must be ≤ {most}, the smaller side of layer '{path}' of '{name}', got {adapter.rank}"
        refuse_if(adapter.rank > most, told, "clients.adapter.rank")
        low_rank = LowRank(weight, adapter.rank, adapter.alpha / adapter.rank)
        parametrize.register_parametrization(layer, "weight", low_rank)
    if adapter.train_head and head:
        model.get_submodule(head).requires_grad_()
    frozen = {path for path, parameter in model.named_parameters() if not parameter.requires_grad}
    model.frozen_base = frozenset(frozen)  # type: ignore[assignment]


def frozen_base(model: nn.Module) -> frozenset[str]:
    """Return the names of the weights that adapters leave frozen; none without adapters."""
    found = vars(model).get("frozen_base", frozenset())
    assert isinstance(found, frozenset)
    return found


def adapters_of(model: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """Yield every adapter with its path."""
    return ((path, part) for path, part in model.named_modules() if isinstance(part, LowRank))
