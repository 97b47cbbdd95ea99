from __future__ import annotations

import pytest

from fedkd.errors import UserError
from fedkd.plan.load import load_scenario
from fedkd.scenario.overrides import apply_overrides, parse_override


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=1.5", 1.5),
        ("a=1e-3", 1e-3),
        ("a=true", True),
        ("a=True", "True"),
        ("a=fedmd", "fedmd"),
        ("a=flwr:FedAdam", "flwr:FedAdam"),
        ("a=/data/sets", "/data/sets"),
        ("a=x=y", "x=y"),
        ("a= 3 ", 3),
        ('a="3"', "3"),
        ('a=""', ""),
        ("a=[1, 2]", [1, 2]),
        ('a={ mode = "offline" }', {"mode": "offline"}),
        ("a=2024-01-31", "2024-01-31"),
        ("a=1\nb=2", "1\nb=2"),
        ("a=10 # ten", 10),
    ],
)
def test_values_have_toml_types_and_bare_words_are_strings(text, value):
    path, parsed = parse_override(text)
    assert path == ("a",)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("before", "overrides", "after"),
    [
        ({}, ["engine.kind=inline"], {"engine": {"kind": "inline"}}),
        ({}, ["a.b.c=1", "a.b.d=2"], {"a": {"b": {"c": 1, "d": 2}}}),
        ({"a": 1}, ["a=2", "a=3"], {"a": 3}),
        ({"l": [{"x": 1}, {"x": 2}]}, ["l.1.x=5"], {"l": [{"x": 1}, {"x": 5}]}),
        ({"l": [{"x": 1}]}, ["l.1.x=5"], {"l": [{"x": 1}, {"x": 5}]}),
        ({"l": [1, 2]}, ["l.0=7"], {"l": [7, 2]}),
        ({}, ["clients.0.model=mlp"], {"clients": [{"model": "mlp"}]}),
        ({}, ["clients.0.args.hidden=[3]"], {"clients": [{"args": {"hidden": [3]}}]}),
    ],
)
def test_overrides_change_one_value_and_create_missing_tables(before, overrides, after):
    apply_overrides(before, overrides)
    assert before == after


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "not of the form key=value"),
        ("=1", "not of the form key=value"),
        ("a..b=1", "not of the form key=value"),
        ("seed=", "seed has no value"),
        ("a=[1, 2", "a: '[1, 2' is not valid TOML"),
        ('a="open', "is not valid TOML"),
        ("l.x=1", "l is a list: name an entry by its number, e.g. l.0"),
        ("l.4.x=1", "l has 1 entries"),
        ("s.x=1", "s is a single value; s.x cannot be set"),
    ],
)
def test_malformed_overrides_are_refused(override, expected):
    with pytest.raises(UserError) as caught:
        apply_overrides({"l": [{"x": 1}], "s": 3}, [override])
    assert str(caught.value).startswith("--set: ") and expected in str(caught.value)


def test_overrides_reach_the_scenario(digits_toml):
    scenario = load_scenario(
        digits_toml,
        [
            "fusion.strategy=fedmd",
            "data.partition.alpha=0.1",
            "clients.0.model=cnn",
            "tracking.wandb.mode=offline",
        ],
    )
    assert scenario.fusion.strategy == "fedmd" and scenario.fusion.model_extra["matching"] == "mae"
    assert scenario.data.partition.alpha == 0.1
    assert [group.model for group in scenario.clients] == ["cnn"]
    assert scenario.tracking.wandb is not None


def test_an_error_names_the_command_line_as_its_source(digits_toml):
    with pytest.raises(UserError, match=r"fusion\.beta: must be ≥ 0, got -1 \(set on the command line\)"):
        load_scenario(digits_toml, ["fusion.beta=-1"])
    with pytest.raises(UserError, match=r"seed: must be ≥ 0, got -1 \(set on the command line\)"):
        load_scenario(digits_toml, seed=-1)
    digits_toml.write_text("rounds = 0")
    with pytest.raises(UserError) as caught:
        load_scenario(digits_toml, ["seed=1"])
    assert "command line" not in str(caught.value)
