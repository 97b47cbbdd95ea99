"""The JSON schema of bench files, for editors that complete and check them."""

from __future__ import annotations

from typing import Any

from fedkd.benchmark.schema import BenchFile
from fedkd.plan.json_schema import json_schema


def bench_json_schema() -> dict[str, Any]:
    """Return the JSON schema of a bench, its `[scenario]` included as far as a scenario's own schema goes.

    Keys of `set`, `grid`, `variants` and `baseline` are those of a scenario, dotted or nested, and axes:
    they are not checked before a bench is read.
    """
    return with_scenario(BenchFile.model_json_schema(), "fedkd bench")


def with_scenario(schema: dict[str, Any], title: str) -> dict[str, Any]:
    """Return the JSON schema of a file with a base scenario, with that scenario's own schema in it.

    Args:
        schema: Of the file's model; changed.
        title: Of the schema.
    """
    scenario = json_schema()
    definitions = schema.setdefault("$defs", {}) | scenario.pop("$defs")
    for name in ("$schema", "title"):
        scenario.pop(name)
    schema["$defs"] = definitions | {"Scenario": scenario}
    own = schema["properties"]["scenario"]
    schema["properties"]["scenario"] = {
        "anyOf": [{"$ref": "#/$defs/Scenario"}, {"type": "null"}],
        "default": None,
        "description": own["description"],
    }
    schema.update({"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title})
    return schema
