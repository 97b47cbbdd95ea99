"""Search spaces in files and on the command line."""

from __future__ import annotations

import pytest

from fedkd.errors import UserError
from fedkd.tuning.space import Dimension, Range, dimension_of, dimensions, parse_search


def test_a_table_may_be_nested_or_dotted():
    nested = {"training": {"lr": {"low": 1e-4, "high": 0.1, "log": True}, "optimizer": ["adam", "sgd"]}}
    dotted = {"training.lr": nested["training"]["lr"], "training.optimizer": ["adam", "sgd"]}
    assert dimensions(nested) == dimensions(dotted)
    lr, optimizer = dimensions(nested)
    assert (lr.key, lr.range) == ("training.lr", Range(low=1e-4, high=0.1, log=True))
    assert (optimizer.key, optimizer.choices) == ("training.optimizer", ("adam", "sgd"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=log:1e-4..1e-1", {"low": 1e-4, "high": 0.1, "log": True}),
        ("a.b=-2..3", {"low": -2, "high": 3}),
        ("a.b=0.5..1", {"low": 0.5, "high": 1}),
        ("a.b=adam, sgd", ["adam", "sgd"]),
        ("a.b=1,2.5,true", [1, 2.5, True]),
        ('a.b=[{s="x"}, {s="y"}]', [{"s": "x"}, {"s": "y"}]),
    ],
)
def test_command_line_words_equal_tables(text, value):
    (found,) = dimensions(parse_search([text]))
    assert found == dimension_of("a.b", value)


def test_integers_are_drawn_between_integer_bounds():
    assert dimension_of("a", {"low": 1, "high": 5}).whole
    assert not dimension_of("a", {"low": 1.0, "high": 5}).whole


def test_drawn_numbers_have_few_digits_and_stay_within():
    lr = dimension_of("a", {"low": 0.00123444, "high": 0.1})
    assert lr.rounded(0.0123456789) == 0.01235
    assert lr.rounded(0.00123444) == 0.00123444
    assert dimension_of("a", {"low": 0.0, "high": 1.0, "step": 0.1}).rounded(0.30000000000000004) > 0.3


def test_a_dimension_contains_exactly_its_values():
    step = dimension_of("a", {"low": 0.1, "high": 0.9, "step": 0.2})
    assert step.holds(0.5) and not step.holds(0.6) and not step.holds(1.1)
    assert not dimension_of("a", {"low": 0, "high": 2}).holds(True)
    choices = Dimension("a", (1, "1"))
    assert choices.holds(1) and choices.holds("1") and not choices.holds(True) and not choices.holds(1.0)


@pytest.mark.parametrize(
    ("search", "key", "message"),
    [
        ({}, "search", "must have at least one key to vary"),
        ({"a": 3}, "search.a", "one value belongs into"),
        ({"a": [3]}, "search.a", "at least two values"),
        ({"a": [3, 3]}, "search.a", "different"),
        ({"a": {"low": 1, "high": 1}}, "search.a", "low must be less than high"),
        ({"a": {"low": 0, "high": 1, "log": True}}, "search.a", "low must be > 0 with log"),
        ({"a": {"low": 1, "high": 9, "log": True, "step": 2}}, "search.a.step", "must be left out with log"),
        ({"a": {"low": 1, "high": 9, "step": 0}}, "search.a.step", "must be > 0"),
        ({"a": {"low": 1, "high": 9, "step": 3}}, "search.a", "whole number of steps"),
        ({"a": {"low": 1, "high": 10**400}}, "search.a.high", "must be"),
        ({"a": {"low": float("nan"), "high": 1}}, "search.a.low", "finite"),
        ({"a": {"low": 1}}, "search.a.high", "missing"),
        ({"a": {"low": 1, "high": 2, "lag": 3}}, "search.a.lag", "did you mean 'log'"),
        ({"a": {"low": "x", "high": 2}}, "search.a.low", "must be"),
        ({"a": {"low": True, "high": 2}}, "search.a", "must be"),
        ({"seed": [1, 2]}, "search.seed", "cannot be searched"),
        ({"engine.kind": ["ray", "inline"]}, "search.engine.kind", "cannot be searched"),
        ({"data": {"validation": [0.1, 0.2]}}, "search.data.validation", "cannot be searched"),
        ({"fusion!": [{"a": 1}, {"a": 2}], "fusion.beta": [1, 2]}, "search.fusion", "searched twice"),
    ],
)
def test_unsearchable_keys_are_refused_by_name(search, key, message):
    with pytest.raises(UserError, match=message) as caught:
        dimensions(search)
    assert (caught.value.key or "").startswith(key)


@pytest.mark.parametrize(
    "text", ["a", "a=", "=3", "a=1", "a=..", "a=x..y", "a=1..", "a=2..1", "a=0..inf", "a=,", "a=[1"]
)
def test_invalid_words_are_refused(text):
    with pytest.raises(UserError):
        dimensions(parse_search([text]))
