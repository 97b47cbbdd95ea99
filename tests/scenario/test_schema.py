from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fedkd.continual.registry import LEARNERS, learner_hyperparameters
from fedkd.fusion.registry import STRATEGIES, strategy_hyperparameters
from fedkd.plan.scenario_schema import json_schema
from fedkd.scenario.explain import known_keys
from fedkd.scenario.schema import Continual, Engine, Fusion, Scenario


def sections(model: type[BaseModel], seen: list[type[BaseModel]]) -> list[type[BaseModel]]:
    if model not in seen:
        seen.append(model)
        for name in model.model_fields:
            for part in _models_in(model.model_fields[name].annotation):
                sections(part, seen)
    return seen


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def test_a_scenario_is_immutable():
    with pytest.raises(ValidationError):
        Scenario().rounds = 3


@pytest.mark.parametrize("section", sections(Scenario, []), ids=lambda section: section.__name__)
def test_every_field_has_a_default_and_is_described(section):
    undescribed = [name for name, field in section.model_fields.items() if not _described(name, field)]
    assert undescribed == []
    assert section() == section.model_validate(section().model_dump())


def _described(name, field) -> bool:
    return bool(field.description) or any(model.__doc__ for model in _models_in(field.annotation))


def test_known_keys_follow_lists_and_optional_tables():
    assert "batch_size" in known_keys(["training"])
    assert "share" in known_keys(["clients", 0])
    assert "project" in known_keys(["tracking", "wandb"])
    assert list(known_keys(["no", "such"])) == []


def test_json_schema_accepts_exactly_loadable_scenarios(digits_scenario):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    assert check.is_valid(digits_scenario)
    assert check.is_valid({"fusion": {"strategy": "knfu", "beta": 1.0}})
    assert not check.is_valid({"fusion": {"strategy": "knfu", "beta": -1.0}})
    assert check.is_valid({"continual": {"learner": "ewc", "strength": 10.0}})
    assert not check.is_valid({"continual": {"learner": "ewc", "strength": -1.0}})
    assert not check.is_valid({"continual": {"tasks": {"kind": "splt"}}})
    assert not check.is_valid({"rounds": 0})
    assert not check.is_valid({"ruonds": 3})


def test_engine_keys_that_change_results_are_documented():
    told = {name: field.description or "" for name, field in Engine.model_fields.items()}
    keys = {name for name, text in told.items() if "last bits of results" in " ".join(text.split())}
    promise = " ".join((Engine.__doc__ or "").split())
    assert keys == {"threads_per_client", "device"} == set(re.findall(r"`(\w+)`", promise))
    assert "ever changes a result" not in promise


def test_json_schema_describes_every_hyperparameter_of_every_strategy():
    schema = json_schema()
    assert schema["$schema"].startswith("https://json-schema.org/") and schema["title"]
    properties = schema["$defs"]["Fusion"]["properties"]
    for name in STRATEGIES.names():
        for parameter in strategy_hyperparameters(name):
            assert properties[parameter.name]["description"], (name, parameter.name)
            assert parameter.name not in Fusion.model_fields, "a strategy shadows a key of [fusion]"
    assert properties["threshold_kind"]["default"] == "quantile"
    assert "default" not in properties["beta"], "strategies start from different β"
    json.dumps(schema, allow_nan=False)


def test_json_schema_describes_every_hyperparameter_of_every_learner():
    properties = json_schema()["$defs"]["Continual"]["properties"]
    for name in LEARNERS.builtin:
        for parameter in learner_hyperparameters(name):
            assert properties[parameter.name]["description"], (name, parameter.name)
            assert parameter.name not in Continual.model_fields, "a learner shadows a key of [continual]"
    assert "default" not in properties["strength"], "learners start from different strengths"
    assert "default" not in properties["memory_size"], "policy keeps no sample"
    assert properties["density"]["default"] == 0.1
