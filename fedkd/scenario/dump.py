"""A scenario back to TOML: what a run folder keeps."""

from __future__ import annotations

from typing import Any

from fedkd.scenario.schema import Scenario


def dump_toml(scenario: Scenario) -> str:
    """Return `scenario` as TOML with every default written out; it loads back to an equal scenario.

    TOML has no null: a key that is absent is ``None``.
    """
    import tomli_w

    header = "# The resolved scenario: running it again repeats the run.\n"
    return header + tomli_w.dumps(_without_none(scenario.model_dump()))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
