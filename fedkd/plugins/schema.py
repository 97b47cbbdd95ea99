"""Hyper-parameters of strategies and learners: fields of a frozen dataclass."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic import dataclasses as pydantic_dataclasses
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from fedkd.errors import UserError, blaming, did_you_mean, refuse_if
from fedkd.plugins.loading import Registry, contain_plugin
from fedkd.plugins.validation_errors import explain_error

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
"""Configuration of fedkd's own pydantic dataclasses: a field's docstring is its description."""

Part = TypeVar("Part")


@typing.dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def hyperparameters(cls: type[Part]) -> type[Part]:
    """Make a class a frozen dataclass whose fields pydantic checks and documents."""
    return typing.cast("type[Part]", pydantic_dataclasses.dataclass(frozen=True, config=STRICT)(cls))


class HyperParameter(NamedTuple):
    """One hyper-parameter of a part, for docs and ``fedkd list``."""

    name: str
    default: Any
    description: str
    type: str


def build_part(cls: type[Part], name: str, hyperparameters: Mapping[str, Any], *, key: str) -> Part:
    """Build a part from its table of a scenario; `key` is e.g. ``fusion.strategy``."""
    table = key.partition(".")[0]
    known = hyperparameter_names(cls)
    for given in hyperparameters:
        if given not in known:
            raise UserError(f"unknown key; {did_you_mean(given, known)}", key=f"{table}.{given}")
    try:
        with contain_plugin():
            return TypeAdapter(cls).validate_python(dict(hyperparameters))
    except ValidationError as invalid:
        error = invalid.errors()[0]
        where = ".".join([table, *(str(part) for part in error["loc"])])
        raise UserError(explain_error(error, known), key=where) from invalid
    except PydanticUserError as unreadable:
        told = f"its hyper-parameters cannot be checked: {unreadable.message.splitlines()[0]}"
        raise UserError(f"'{name}': {told}", key=key) from unreadable
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"'{name}' raised {type(error).__name__}: {error}", key=key) from error


def load_part(
    registry: Registry, base: type[Part], name: str, search: Sequence[str | Path], *, key: str
) -> type[Part]:
    """Return the class `name`; it must be a dataclass derived from `base`, with all methods."""
    with blaming(key=key):
        cls = registry.load(name, search)
    derived = isinstance(cls, type) and issubclass(cls, base)
    refuse_if(not derived, f"'{name}' is not a class derived from {base.__module__}.{base.__qualname__}", key)
    abstract: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
    missing = " and ".join(f"`{method}`" for method in sorted(abstract))
    refuse_if(missing, f"'{name}' does not define {missing}", key)
    refuse_if(not hasattr(cls, "name"), f"'{name}' has no `name`", key)
    # is_dataclass accepts an inherited dataclass, but would ignore the class's own fields.
    plain = "__dataclass_fields__" not in vars(cls)
    refuse_if(plain, f"'{name}' is not a dataclass; put @dataclass(frozen=True) above it", key)
    return cls


def hyperparameter_names(cls: type) -> list[str]:
    """Return the names of a part's hyper-parameters in declared order."""
    return [field.name for field in dataclasses.fields(cls) if field.init]


def hyperparameters_of(cls: type) -> list[HyperParameter]:
    """Return a part's hyper-parameters in declared order."""
    hints = get_type_hints(cls, include_extras=True)
    # A plain dataclass has no descriptions.
    described = [vars(base).get("__pydantic_fields__", {}) for base in reversed(cls.__mro__)]
    documented = {name: f.description for own in described for name, f in own.items() if f.description}
    return [
        HyperParameter(
            field.name,
            _default(field),
            " ".join((documented.get(field.name) or _description(hints[field.name])).split()),
            type_text(hints[field.name]),
        )
        for field in dataclasses.fields(cls)
        if field.init
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    value = None if field.default is dataclasses.MISSING else field.default
    return value.get_default(call_default_factory=True) if isinstance(value, FieldInfo) else value


def _description(hint: Any) -> str:
    infos = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, FieldInfo)]
    found = [info.description or "" for info in infos] + [_description(part) for part in get_args(hint)]
    return next(filter(None, found), "")


def type_text(hint: Any) -> str:
    """Return an annotation as text: ``float ≥ 0``, ``"soft" | "hard"``, ``int ≥ 0 or absent``."""
    if get_origin(hint) is Annotated:
        base, *extras = get_args(hint)
        bounds = [bound for extra in extras for bound in getattr(extra, "metadata", [extra])]
        signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
        found = [(sign, getattr(bound, name, None)) for bound in bounds for name, sign in signs.items()]
        limits = [f"{sign} {limit}" for sign, limit in found if limit is not None]
        return " ".join([type_text(base), " and ".join(limits)]).strip()
    if get_origin(hint) is Literal:
        return " | ".join(f'"{choice}"' for choice in get_args(hint))
    if get_origin(hint) is list:
        return f"list of {type_text(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return "table"
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        text = " | ".join(type_text(part) for part in parts)
        return f"{text} or absent" if type(None) in get_args(hint) else text
    return getattr(hint, "__name__", str(hint))
