"""Identity of a scenario: the keys that affect its results, and their digest."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fedkd.scenario.schema import Faults, Scenario
from fedkd.scenario.sections import Topology

RESULT_NEUTRAL_KEYS = ("name", "engine", "tracking", "checkpoint_every")
"""Keys without effect on results, except `engine.threads_per_client`; `device` may change."""
FAULT_HANDLING_KEYS = ("timeout", "on_client_error", "on_bad_upload", "retries", "min_replies")
"""Keys of `faults` about clients that fail; without failures they have no effect."""
LATER: Mapping[tuple[str, ...], Any] = {
    ("clock",): None,
    ("evaluate",): "full",
    ("asynchronous",): None,
    ("metrics",): ["accuracy"],
    ("data", "task"): None,
    ("data", "head"): None,
    ("data", "partition", "bins"): None,
    ("data", "partition", "replacement"): False,
    ("data", "transfer", "alpha"): None,
    ("data", "validation"): None,
    ("training", "held_out"): None,
    ("fusion", "kd_weight"): 0.0,
    ("fusion", "kd_weight_decay"): 1.0,
    ("fusion", "logit_adjustment"): 0.0,
    ("fusion", "absent_by_experts"): False,
    ("measure",): None,
    ("topology",): Topology().model_dump(mode="json"),
}
"""Keys that older runs lack, each with its value without effect."""
PLACES = ("plugin_path", "data.root")  # keys of folders, which may be moved


def result_relevant_keys(scenario: Scenario) -> dict[str, Any]:
    """Return the keys that affect a resolved scenario's results, as JSON."""
    tables = {
        key: value
        for key, value in scenario.model_dump(mode="json").items()
        if key not in RESULT_NEUTRAL_KEYS
    }
    usual = Faults().model_dump(mode="json")
    tables["faults"] = {
        key: value
        for key, value in tables["faults"].items()
        if key not in FAULT_HANDLING_KEYS or value != usual[key]
    }
    if tables["fusion"]["ce_weight"] is not None:  # else the keys that the recipe sets are not resolved
        del tables["training"]["recipe"]
    for (*path, key), usually in LATER.items():
        table = tables
        for name in path:
            table = table[name]
        if key in table and table[key] == usually:
            del table[key]
    if scenario.engine.threads_per_client != 1:
        tables["threads_per_client"] = scenario.engine.threads_per_client
    return tables


def with_choices_of(run: Scenario, tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys with `auto` (`evaluate`, `training.executor`) replaced by the choice of a run."""
    chosen, training = result_relevant_keys(run), dict(tables["training"])
    if training["executor"] == "auto":
        training["executor"] = run.training.executor
    rest = {key: value for key, value in tables.items() if (key, value) != ("evaluate", "auto")}
    if "evaluate" in chosen and "evaluate" not in rest:
        rest["evaluate"] = chosen["evaluate"]
    return {**rest, "training": training}


def scenario_digest(scenario: Scenario) -> str:
    """Return the SHA-256 of the keys that affect a scenario's results."""
    return _sha256(result_relevant_keys(scenario))


def run_digest(scenario: Scenario) -> str:
    """Return `scenario_digest` without folder, length and handling of faults."""
    usual = {key: getattr(Faults(), key) for key in FAULT_HANDLING_KEYS}
    faults = scenario.faults.model_copy(update=usual)
    tables = result_relevant_keys(_anywhere(scenario).model_copy(update={"faults": faults}))
    return _sha256({key: value for key, value in tables.items() if key != "rounds"})


def relocatable_digest(scenario: Scenario) -> str:
    """Return `scenario_digest` without the folders of the scenario's files."""
    return scenario_digest(_anywhere(scenario))


def _anywhere(scenario: Scenario) -> Scenario:
    data = scenario.data.model_copy(update={"root": None})
    return scenario.model_copy(update={"plugin_path": [], "data": data})


def _sha256(tables: Mapping[str, Any]) -> str:
    canonical = json.dumps(tables, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def changed_keys(
    before: Mapping[str, Any], now: Mapping[str, Any], *, places: bool = False
) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys that differ, with both values (None if absent)."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return {
        key: (old.get(key), new.get(key))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and (places or not key.startswith(PLACES))
    }


def _leaves(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if not value or not isinstance(value, Mapping | list):
        return [(key, value)]
    inner = value.items() if isinstance(value, Mapping) else enumerate(value)
    return [leaf for name, item in inner for leaf in _leaves(item, f"{key}.{name}" if key else str(name))]
