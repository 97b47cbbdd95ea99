"""Scenario files in, checked and resolved scenarios out.

A *resolved* scenario stands alone: the strategy's defaults are filled in, and its own folder is named where
files beside it are, so that it means the same in a run folder and in another process.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedkd.errors import UserError
from fedkd.plugins import import_plugins, module_file
from fedkd.scenario.checks import PATH_DATASETS, check_one_architecture, check_scenario
from fedkd.scenario.dump import dump_toml
from fedkd.scenario.explain import scenario_error
from fedkd.scenario.hyperparameters import resolve_hyperparameters, resolve_learner
from fedkd.scenario.overrides import apply_overrides
from fedkd.scenario.schema import Scenario
from fedkd.scenario.stream import resolve_stream

__all__ = ["dump_toml", "load_scenario", "parse_scenario", "read_toml", "scenario_from_json"]


def load_scenario(path: str | Path, overrides: Sequence[str] = (), seed: int | None = None) -> Scenario:
    """Read, check and resolve a scenario file.

    Args:
        path: The TOML file.
        overrides: ``key=value`` texts of ``--set``, applied in order.
        seed: Replaces the file's seed.

    Raises:
        UserError: The first thing that is wrong, with the file and the key.
    """
    mapping = read_toml(path)
    from_command_line = apply_overrides(mapping, overrides)
    if seed is not None:
        mapping["seed"] = seed
        from_command_line.add("seed")
    try:
        return parse_scenario(mapping, file=str(path), folder=Path(path).parent)
    except UserError as error:
        if any(f"{error.key}.".startswith(f"{key}.") for key in from_command_line):
            error = UserError(f"{error.message} (set on the command line)", key=error.key, file=error.file)
        raise error from None


BENCH_KEYS = {"base", "grid", "variants", "baseline", "seeds"}
"""Keys by which a bench file gives itself away."""


def parse_scenario(
    mapping: Mapping[str, Any], *, file: str | None = None, folder: str | Path | None = None
) -> Scenario:
    """Check and resolve a scenario given as nested tables.

    Args:
        mapping: What the TOML file would hold.
        file: Name for error messages.
        folder: What relative paths are relative to, and where plug-ins lie; absent: the working folder.

    Raises:
        UserError: The first thing that is wrong.
    """
    if BENCH_KEYS & mapping.keys():
        raise UserError(f"is a bench, not a scenario; run it with: fedkd bench {file or 'FILE'}", file=file)
    try:
        scenario = _located(Scenario.model_validate(dict(mapping)), folder)
        import_plugins(scenario)
        scenario = resolve_stream(scenario)
        check_scenario(scenario)
        return _with_hyperparameters(scenario)
    except ValidationError as error:
        raise scenario_error(error, file=file) from None
    except UserError as error:
        raise error.at(file=file) from None


def scenario_from_json(text: str | bytes) -> Scenario:
    """Read a scenario that travelled as ``scenario.model_dump_json()``; it is resolved already."""
    try:
        return Scenario.model_validate_json(text)
    except ValidationError as error:
        raise scenario_error(error) from None


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: The file cannot be read, or is not TOML (with the line).
    """
    file = str(path)
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file; expected a scenario in TOML", file=file) from None
    except IsADirectoryError:
        raise UserError("is a folder; expected a scenario in TOML", file=file) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=file) from None
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text (byte {error.start})", file=file) from None
    except tomllib.TOMLDecodeError as error:
        what = str(error)  # ends with "(at line 3, column 8)"
        raise UserError(f"not valid TOML: {what[:1].lower()}{what[1:]}", file=file) from None


def _located(scenario: Scenario, folder: str | Path | None) -> Scenario:
    """Return the scenario with absolute folders, its own among them where files beside it are named."""
    home = Path(folder or ".").resolve()
    tables = scenario.model_dump()
    root = scenario.data.root
    if root is not None:
        beside = _absolute(root, home)
        tables["data"]["root"] = beside if Path(beside).is_dir() else _absolute(root, Path.cwd())
    search = [_absolute(path, home) for path in scenario.plugin_path]
    # Only a folder that holds something named is searched, so a copy of the scenario elsewhere stays equal.
    if str(home) not in search and any((home / file).exists() for file in _named_files(scenario)):
        search.append(str(home))
    tables["plugin_path"] = search
    if "rounds" not in scenario.model_fields_set:
        del tables["rounds"]  # still absent: a stream of tasks decides
    return Scenario.model_validate(tables)


def _with_hyperparameters(scenario: Scenario) -> Scenario:
    """Return the scenario with the strategy's and the learner's own defaults filled in."""
    tables = scenario.model_dump()
    tables["fusion"].update(resolve_hyperparameters(scenario.fusion, scenario.plugin_path))
    if scenario.continual is not None:
        tables["continual"].update(resolve_learner(scenario.continual, scenario.plugin_path))
    if scenario.fusion.from_flower:
        check_one_architecture(scenario)
    return Scenario.model_validate(tables)


def _absolute(path: str, home: Path) -> str:
    return str((home / Path(path).expanduser()).resolve())


def _named_files(scenario: Scenario) -> list[Path]:
    """Return the files that may lie beside the scenario: modules of ``"module:Name"``, and relative paths."""
    data, fusion = scenario.data, scenario.fusion
    names = [
        data.dataset,
        data.transfer.source,
        data.partition.scheme,
        *(group.model for group in scenario.clients),
    ]
    if not fusion.from_flower:
        names.append(fusion.strategy)
    if scenario.continual is not None:
        names += [scenario.continual.learner, *scenario.continual.tasks.datasets]
    modules = [*scenario.plugins, *(name.partition(":")[0] for name in names if ":" in name)]
    paths = [data.partition.path] if data.partition.path else []
    for name, args in ((data.dataset, data.args), (data.transfer.source, data.transfer.args)):
        if name in PATH_DATASETS and isinstance(args.get("path"), str):
            paths.append(args["path"])
    return [*map(module_file, modules), *(Path(path) for path in paths if not Path(path).is_absolute())]
