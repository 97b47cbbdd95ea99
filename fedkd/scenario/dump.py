"""Write a scenario as TOML for run folders."""

import os
from pathlib import Path
from typing import Any

from fedkd.scenario.schema import Scenario


def dump_toml(scenario: Scenario, folder: Path | None = None) -> str:
    """Return a scenario as TOML, with paths relative to a given folder."""
    import tomli_w

    header = "# The resolved scenario: running it again repeats the run.\n"
    placed = scenario if folder is None else make_paths_relative(scenario, folder)
    return header + tomli_w.dumps(_without_none(placed.model_dump()))


def toml_value(value: Any) -> str:
    """Return a value in TOML."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def make_paths_relative(scenario: Scenario, folder: Path) -> Scenario:
    """Return a scenario with its folders relative to `folder`."""
    home = folder.resolve()
    root = scenario.data.root
    data = scenario.data.model_copy(update={"root": root and os.path.relpath(root, home)})
    search = [os.path.relpath(path, home) for path in scenario.plugin_path]
    return scenario.model_copy(update={"data": data, "plugin_path": search})


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
