"""Fusion strategies by name, and their hyper-parameters checked in the scenario's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd.fusion.strategy import FusionStrategy
from fedkd.hyperparameters import HyperParameter, build_part, hyperparameters_of, load_part
from fedkd.plugins import Registry

KEY = "fusion.strategy"

STRATEGIES = Registry(
    "fusion strategy",
    {
        "local": "fedkd.fusion.local:Local",
        "cfd": "fedkd.fusion.cfd:CFD",
        "comet": "fedkd.fusion.comet:Comet",
        "cronus": "fedkd.fusion.cronus:Cronus",
        "dsfl": "fedkd.fusion.dsfl:DSFL",
        "fedmd": "fedkd.fusion.fedmd:FedMD",
        "knfu": "fedkd.fusion.knfu:KnFu",
        "fedet": "fedkd.fusion.fedet:FedET",
        "feddf": "fedkd.fusion.feddf:FedDF",
        "fedproto": "fedkd.fusion.fedproto:FedProto",
        "fd": "fedkd.fusion.fd:FD",
        "kta": "fedkd.fusion.kta:KTA",
        "dp": "fedkd.fusion.data_partitioned:DataPartitioned",
        "selective_fd": "fedkd.fusion.selective_fd:SelectiveFD",
        "ktpfl": "fedkd.fusion.ktpfl:KTpFL",
        "scarlet": "fedkd.fusion.scarlet:Scarlet",
        "scaffold": "fedkd.fusion.scaffold:Scaffold",
    },
    group="fedkd.strategies",
)


def make_strategy(
    name: str, hyperparameters: Mapping[str, Any], search: Sequence[str | Path] = ()
) -> FusionStrategy:
    """Build a strategy from the ``[fusion]`` table of a scenario.

    Args:
        name: A built-in name, or ``"pkg.mod:Class"``.
        hyperparameters: The strategy's own keys; those left out take their defaults.
        search: Folders whose Python files may be named.

    Raises:
        UserError: No such strategy, a class that is not one, an unknown key or a value out of range.
    """
    return build_part(load_strategy_class(name, search), name, hyperparameters, key=KEY)


def load_strategy_class(name: str, search: Sequence[str | Path] = ()) -> type[FusionStrategy]:
    """Return the class called `name`, once it is sure to be a usable strategy.

    Raises:
        UserError: It does not exist, or is not a dataclass derived from `FusionStrategy` with its methods.
    """
    return load_part(STRATEGIES, FusionStrategy, name, search, key=KEY)  # type: ignore[type-abstract]


def strategy_hyperparameters(
    strategy: str | type[FusionStrategy], search: Sequence[str | Path] = ()
) -> list[HyperParameter]:
    """Return a strategy's hyper-parameters in the order in which it declares them."""
    return hyperparameters_of(
        load_strategy_class(strategy, search) if isinstance(strategy, str) else strategy
    )
