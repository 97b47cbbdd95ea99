"""Load scenario files as plans."""

import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fedkd.errors import UserError, blaming
from fedkd.plan.checks.no_plugins import WithoutPlugins, find_plug_ins, open_without_plugins
from fedkd.plan.checks.unread_keys import NO_OVERRIDES, OverrideLayers
from fedkd.plan.hyperparameters import bind_strategy, with_canonical_names
from fedkd.plan.plan import Plan, resolve_plan
from fedkd.plan.recipe import followed
from fedkd.scenario import (
    NAME_PATTERN,
    Scenario,
    apply_overrides,
    apply_values,
    find_shipped,
    read_scenario,
    read_toml,
)

Found = TypeVar("Found")


def load_plan(
    path: str | Path, overrides: Sequence[str] = (), seed: int | None = None, *, written: bool = True
) -> Plan:
    """Read, check and resolve a scenario file; a mistake is a `UserError`.

    Overrides are ``key=value`` texts of ``--set``, applied in order. Keys that they make ineffective are
    dropped. An ineffective key is a mistake in a file `written` by a person.
    """
    return _load(path, overrides, seed, partial(parse_plan, written=written))


def load_without_plugins(path: str | Path, overrides: Sequence[str] = ()) -> Plan | WithoutPlugins:
    """Return a file's plan, or if it has plug-ins the checks without imports."""
    return _load(path, overrides, None, parse_without_plugins)


def _load(path: str | Path, overrides: Sequence[str], seed: int | None, parse: Callable[..., Found]) -> Found:
    path = find_shipped(path, "scenario")
    mapping = read_toml(path)
    if re.match(NAME_PATTERN, path.stem):
        mapping.setdefault("name", path.stem)
    from_command_line = apply_overrides(mapping, overrides)
    if seed is not None:
        mapping["seed"] = seed
        from_command_line.add("seed")
    with _told_of(from_command_line, "set on the command line"):
        return parse(mapping, file=str(path), folder=path.parent, layers=OverrideLayers([from_command_line]))


@contextmanager
def _told_of(keys: Collection[str], how: str) -> Iterator[None]:
    """Add the origin of keys to errors about them."""
    try:
        yield
    except UserError as error:
        if any(f"{error.key}.".startswith(f"{key}.") for key in keys):
            error = UserError(f"{error.message} ({how})", key=error.key, file=error.file)
        raise error from None


def parse_plan(
    mapping: Mapping[str, Any],
    *,
    file: str | None = None,
    folder: str | Path | None = None,
    layers: OverrideLayers = NO_OVERRIDES,
    written: bool = True,
) -> Plan:
    """Resolve a scenario of nested tables; paths are relative to `folder`."""
    return _parse(mapping, file, folder, lambda s: resolve_plan(s, layers, written=written))


def plan_with_changes(
    scenario: Scenario | Mapping[str, Any] | str | Path, changes: Mapping[str, Any]
) -> Plan:
    """Resolve a scenario with changed values, by key or table."""
    file, folder = None, None
    if isinstance(scenario, str | Path):
        path = find_shipped(scenario, "scenario")
        file, folder, mapping = str(path), path.parent, read_toml(path)
    elif isinstance(scenario, Scenario):
        mapping = _without_what_followed(scenario, changes)
    else:
        mapping = copy.deepcopy(dict(scenario))
    changed = apply_values(mapping, changes)
    with _told_of(changed, "given as an argument"):
        return parse_plan(mapping, file=file, folder=folder, layers=OverrideLayers([changed]))


def _without_what_followed(scenario: Scenario, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved scenario's tables without values that follow from a changed key."""
    mapping = scenario.model_dump(exclude_defaults=True)
    changed = apply_values({}, {key: value for key, value in changes.items() if key.split(".")[0] in mapping})
    for name, choice in (("fusion", "strategy"), ("continual", "learner")):
        section = getattr(scenario, name)
        if section is not None and f"{name}.{choice}" in changed:
            for parameter in section.model_extra or {}:
                mapping[name].pop(parameter, None)
    if {"fusion.strategy", "training.recipe"} & set(changed):
        strategy, _ = bind_strategy(scenario)
        for key in followed(scenario, strategy):
            mapping["fusion"].pop(key, None)
    if scenario.continual is not None and any(key.startswith("continual.") for key in changed):
        mapping.pop("rounds", None)
    return mapping


def parse_without_plugins(
    mapping: Mapping[str, Any],
    *,
    file: str | None = None,
    folder: str | Path | None = None,
    layers: OverrideLayers = NO_OVERRIDES,
) -> Plan | WithoutPlugins:
    """Check a scenario of nested tables without importing plug-ins (see `parse_plan`)."""

    def look(scenario: Scenario) -> Plan | WithoutPlugins:
        scenario = with_canonical_names(scenario)
        open = open_without_plugins if find_plug_ins(scenario) else resolve_plan
        return open(scenario, layers)

    return _parse(mapping, file, folder, look)


def _parse(
    mapping: Mapping[str, Any], file: str | None, folder: str | Path | None, open: Callable[[Scenario], Found]
) -> Found:
    with blaming(file=file):
        return open(read_scenario(mapping, file=file, folder=folder))


def load_scenario(path: str | Path, overrides: Sequence[str] = (), seed: int | None = None) -> Scenario:
    """Return the resolved scenario of a file (see `load_plan`)."""
    return load_plan(path, overrides, seed).scenario


def parse_scenario(mapping: Mapping[str, Any], **options: Any) -> Scenario:
    """Return the resolved scenario of nested tables (options as in `parse_plan`)."""
    return parse_plan(mapping, **options).scenario
