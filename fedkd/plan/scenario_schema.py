"""The JSON schema of scenario files, for completion and checks in editors."""

from typing import Any

from pydantic import TypeAdapter

from fedkd.continual import LEARNERS
from fedkd.data import PARTITIONS
from fedkd.fusion import STRATEGIES
from fedkd.plugins import Registry
from fedkd.scenario import Scenario
from fedkd.training import METRICS


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of scenarios, with hyper-parameters of built-in parts."""
    schema = Scenario.model_json_schema()
    # Names registered by plug-ins are valid too; editors still offer the built-in ones.
    scheme = schema["$defs"]["Partition"]["properties"]["scheme"]
    scheme["anyOf"] = [{"enum": list(PARTITIONS.builtin)}, {"type": "string"}]
    schema["properties"]["metrics"]["items"] = {
        "anyOf": [{"enum": list(METRICS.builtin)}, {"type": "string"}]
    }
    for section, registry in (("Fusion", STRATEGIES), ("Continual", LEARNERS)):
        properties = schema["$defs"][section]["properties"]
        for name, hyperparameter in _hyperparameters(registry).items():
            properties.setdefault(name, hyperparameter)
    schema.update({"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "fedkd scenario"})
    return schema


def _hyperparameters(registry: Registry) -> dict[str, dict[str, Any]]:
    variants: dict[str, dict[str, dict[str, Any]]] = {}
    for part in registry.builtin:
        properties = TypeAdapter(registry.load(part)).json_schema().get("properties", {})
        for name, schema in properties.items():
            variants.setdefault(name, {})[part] = schema
    return {name: _merged(schemas) for name, schemas in variants.items()}


def _merged(schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    descriptions: dict[str, list[str]] = {}
    kinds: list[dict[str, Any]] = []
    for part, schema in schemas.items():
        descriptions.setdefault(schema.get("description", ""), []).append(part)
        kind = {key: value for key, value in schema.items() if key not in ("description", "default", "title")}
        if kind not in kinds:
            kinds.append(kind)
    merged: dict[str, Any] = dict(kinds[0]) if len(kinds) == 1 else {"anyOf": kinds}
    merged["description"] = " ".join(f"{', '.join(names)}: {text}" for text, names in descriptions.items())
    defaults = [schema["default"] for schema in schemas.values() if "default" in schema]
    if len(defaults) == len(schemas) and all(default == defaults[0] for default in defaults):
        merged["default"] = defaults[0]
    return merged
