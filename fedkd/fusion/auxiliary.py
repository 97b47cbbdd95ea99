"""Auxiliary networks of a client, trained in the same steps as its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedkd.fusion.strategy import FusionStrategy
    from fedkd.fusion.views import ClientView

OWN_NETWORK = "model"
"""Name of the client's model among its networks."""


class Maker(Protocol):
    """A client's means of making an auxiliary network."""

    @property
    def classes(self) -> int:
        """Number of classes C."""

    def width(self, network: str = OWN_NETWORK) -> int:
        """Return the feature width F of the model or an earlier auxiliary; UserError without one."""

    def like_own(self) -> nn.Module:
        """Return a fresh network of the architecture of the client's model."""

    def shared_model(self, *, with_features: bool = False) -> nn.Module:
        """Return a fresh network by the strategy's `shared_model` and `shared_args`."""


@dataclass(frozen=True)
class AuxNetwork:
    """A network besides the client's model.

    Checkpoints hold it with the client's state. Messages carry it only if the strategy uploads it.

    Attributes:
        make: Makes it on the CPU, once for a client, with torch's draws seeded.
        start: Initial draws: `shared` by all clients, for averaging, or separate for each `client`.
        trained: True if local training changes it, in the model's optimiser steps. Gradients are clipped for
            each network alone.
        lr: Learning rate of the first round; None: the model's.
        sees: Its inputs: samples, or features of another network.
        passes: Passes forward and back on a batch of local training; forward alone is a third. None: one if
            it is trained, else none.
    """

    make: Callable[[Maker], nn.Module]
    start: Literal["shared", "client"] = "shared"
    trained: bool = True
    lr: float | None = None
    sees: Literal["samples", "features"] = "samples"
    passes: float | None = None


class AuxNetworks:
    """Mixin: networks beside the client's model, ``class Mine(AuxNetworks, FusionStrategy)``."""

    shared_model: str | None = None
    """Name of a small model that every client also trains; a hyper-parameter."""
    shared_args: Mapping[str, Any] = MappingProxyType({})
    """Keyword arguments of that model; a hyper-parameter."""
    evaluated_networks: ClassVar[tuple[str, ...]] = (OWN_NETWORK,)
    """Networks of an evaluation: the client's model, and auxiliary ones by name."""
    eval_models: ClassVar[tuple[str, ...]] = ()
    """Models that evaluations measure separately, as `accuracy_NAME` and `accuracy_before_fusion_NAME`."""

    @property
    def shared_arguments(self) -> dict[str, Any]:
        """Arguments of `shared_model`."""
        return dict(self.shared_args)

    def aux_networks(self) -> Mapping[str, AuxNetwork]:
        """Return every client's auxiliary networks by name, in order of creation."""
        return {}

    def predictor(self, client: ClientView) -> nn.Module | None:
        """Return the network to evaluate, `[B, *input_shape]` to logits `[B, C]`; None: the model.

        It is on the device of the client's model. Uploads always come from the model.
        """
        return None

    @property
    def answering_model(self) -> str:
        """The one of `eval_models` that `predictor` returns; empty without any."""
        return ""

    def eval_model(self, client: ClientView, name: str) -> nn.Module:
        """Return one of the `eval_models`, as for a `predictor`."""
        raise NotImplementedError(f"'{type(self).__name__}' does not define `eval_model`")


def joined(forward: Callable[..., Tensor], *networks: nn.Module, **buffers: Tensor) -> nn.Module:
    """Return networks as one `predictor`, whose output is ``forward(x, *networks, **buffers)``."""
    from torch import nn

    class Joined(nn.Module):
        recordable: ClassVar[bool] = True

        def __init__(self) -> None:
            super().__init__()
            self.networks = nn.ModuleList(networks)
            for name, values in buffers.items():
                self.register_buffer(name, values)

        def forward(self, x: Tensor) -> Tensor:
            return forward(x, *self.networks, **dict(self.named_buffers(recurse=False)))

    return Joined()


_NONE = AuxNetworks()


def aux_networks_of(strategy: FusionStrategy) -> AuxNetworks:
    """Return a strategy's hooks for auxiliary networks; without the mixin, neutral ones."""
    return strategy if isinstance(strategy, AuxNetworks) else _NONE
