"""Fusion strategies by name, and their hyper-parameters checked in the scenario's own words."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from fedkd.errors import UserError, did_you_mean
from fedkd.explain import explain_error
from fedkd.fusion.strategy import FusionStrategy
from fedkd.plugins import Registry

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


class HyperParameter(NamedTuple):
    """One hyper-parameter of a strategy, as docs and ``fedkd list`` show it."""

    name: str
    default: Any
    description: str
    type: str


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
    cls = load_strategy_class(name, search)
    known = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    for key in hyperparameters:
        if key not in known:
            raise UserError(f"unknown key; {did_you_mean(key, known)}", key=f"fusion.{key}")
    try:
        return TypeAdapter(cls).validate_python(dict(hyperparameters))
    except ValidationError as invalid:
        error = invalid.errors()[0]
        key = ".".join(["fusion", *(str(part) for part in error["loc"])])
        raise UserError(explain_error(error, known), key=key) from invalid
    except PydanticUserError as unreadable:
        raise UserError(
            f"'{name}': its hyper-parameters cannot be checked: {unreadable.message.splitlines()[0]}",
            key="fusion.strategy",
        ) from unreadable


def load_strategy_class(name: str, search: Sequence[str | Path] = ()) -> type[FusionStrategy]:
    """Return the class called `name`, once it is sure to be a usable strategy.

    Raises:
        UserError: It does not exist, or is not a dataclass derived from `FusionStrategy` with its methods.
    """
    try:
        cls = STRATEGIES.load(name, search)
    except UserError as error:
        raise error.at(key="fusion.strategy") from error
    problem = _problem(cls)
    if problem:
        raise UserError(f"'{name}' {problem}", key="fusion.strategy")
    return cls


def _problem(cls: Any) -> str | None:
    if not (isinstance(cls, type) and issubclass(cls, FusionStrategy)):
        return "is not a class derived from fedkd.fusion.strategy.FusionStrategy"
    if cls.__abstractmethods__:
        return f"does not define {' and '.join(f'`{name}`' for name in sorted(cls.__abstractmethods__))}"
    if not hasattr(cls, "name"):
        return "does not say its `name`"
    # An inherited dataclass would do for is_dataclass, but the class's own fields would be ignored.
    if "__dataclass_fields__" not in vars(cls):
        return "is not a dataclass; put @dataclass(frozen=True) above it"
    return None


def strategy_hyperparameters(
    strategy: str | type[FusionStrategy], search: Sequence[str | Path] = ()
) -> list[HyperParameter]:
    """Return a strategy's hyper-parameters in the order in which it declares them."""
    cls = load_strategy_class(strategy, search) if isinstance(strategy, str) else strategy
    hints = get_type_hints(cls, include_extras=True)
    documented = getattr(cls, "__pydantic_fields__", {})  # empty for a plain dataclass
    return [
        HyperParameter(
            field.name,
            _default(field),
            _one_line(
                getattr(documented.get(field.name), "description", None) or _description(hints[field.name])
            ),
            _type_text(hints[field.name]),
        )
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.init
    ]


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    value = None if field.default is dataclasses.MISSING else field.default
    return value.get_default(call_default_factory=True) if isinstance(value, FieldInfo) else value


def _description(hint: Any) -> str:
    """Return the first ``Field(description=...)`` in an annotation, looking into ``X | None`` too."""
    infos = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, FieldInfo)]
    found = [info.description or "" for info in infos] + [_description(part) for part in get_args(hint)]
    return next(filter(None, found), "")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _type_text(hint: Any) -> str:
    """Return an annotation for people: ``float ≥ 0``, ``"soft" | "hard"``, ``int ≥ 0 or absent``."""
    if get_origin(hint) is Annotated:
        base, *extras = get_args(hint)
        bounds = [bound for extra in extras for bound in getattr(extra, "metadata", [extra])]
        signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
        limits = [
            f"{sign} {getattr(bound, name)}"
            for bound in bounds
            for name, sign in signs.items()
            if getattr(bound, name, None) is not None
        ]
        return " ".join([_type_text(base), " and ".join(limits)]).strip()
    if get_origin(hint) is Literal:
        return " | ".join(f'"{choice}"' for choice in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        text = " | ".join(_type_text(part) for part in parts)
        return f"{text} or absent" if type(None) in get_args(hint) else text
    return getattr(hint, "__name__", str(hint))
