"""Fusion: clients' knowledge in, guidance out. Read `strategy` first, then one method such as `fedmd`.

A method is one file of one frozen dataclass, named as in the literature. `capabilities` says what a strategy
needs and can, `views` what it may use of a client and of the server. `registry` knows all by name.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedkd.fusion.auxiliary import AuxNetwork, AuxNetworks
    from fedkd.fusion.capabilities import Capabilities
    from fedkd.fusion.kinds import Kind
    from fedkd.fusion.local_objective import LocalObjective
    from fedkd.fusion.math.probabilities import softmax
    from fedkd.fusion.server_cost import ServerCost, ServerModel
    from fedkd.fusion.strategy import FusionStrategy, Guidance, Knowledge
    from fedkd.training.losses import kd_kl

_PLACES = {
    "AuxNetwork": "fedkd.fusion.auxiliary",
    "AuxNetworks": "fedkd.fusion.auxiliary",
    "Capabilities": "fedkd.fusion.capabilities",
    "FusionStrategy": "fedkd.fusion.strategy",
    "Guidance": "fedkd.fusion.strategy",
    "Kind": "fedkd.fusion.kinds",
    "Knowledge": "fedkd.fusion.strategy",
    "LocalObjective": "fedkd.fusion.local_objective",
    "ServerCost": "fedkd.fusion.server_cost",
    "ServerModel": "fedkd.fusion.server_cost",
    "kd_kl": "fedkd.training.losses",
    "softmax": "fedkd.fusion.math.probabilities",
}
__all__ = [
    "AuxNetwork",
    "AuxNetworks",
    "Capabilities",
    "FusionStrategy",
    "Guidance",
    "Kind",
    "Knowledge",
    "LocalObjective",
    "ServerCost",
    "ServerModel",
    "kd_kl",
    "register",
    "softmax",
]


def register(name: str) -> Callable[[type], type]:
    """Register a dataclass derived from `FusionStrategy` under a name of its own."""
    from fedkd.fusion.registry import STRATEGIES

    return STRATEGIES.register(name)


def __getattr__(name: str) -> Any:
    """Import on first use: a list of strategies needs no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'fedkd.fusion' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)
