from __future__ import annotations

import tomllib

import pytest

from fedkd.benchmark.merge import flatten, forget_hyperparameters, merged
from fedkd.errors import UserError

BASE = {
    "rounds": 3,
    "clients": [{"model": "cnn"}, {"model": "mlp"}],
    "fusion": {"strategy": "knfu", "beta": 10.0, "distill_epochs": 3},
}


@pytest.mark.parametrize(
    "spelling",
    ['"fusion.strategy" = "fedmd"', 'fusion.strategy = "fedmd"', 'fusion = { strategy = "fedmd" }'],
)
def test_every_spelling_of_a_key_changes_this_key_only(spelling):
    changes = tomllib.loads(f"change = {{ {spelling} }}")["change"]
    fusion = {"strategy": "fedmd", "beta": 10.0, "distill_epochs": 3}
    assert merged(BASE, changes) == BASE | {"fusion": fusion}


def test_an_exclamation_mark_replaces_the_table():
    assert merged(BASE, {"fusion!": {"strategy": "fedmd"}}) == BASE | {"fusion": {"strategy": "fedmd"}}


def test_lists_are_replaced_and_stepped_into():
    assert merged(BASE, {"clients": [{"model": "lenet"}]})["clients"] == [{"model": "lenet"}]
    assert merged(BASE, {"clients.1.model": "lenet"})["clients"] == [{"model": "cnn"}, {"model": "lenet"}]
    with pytest.raises(UserError, match="has 2 entries"):
        merged(BASE, {"clients.2.model": "lenet"})
    with pytest.raises(UserError, match="single value"):
        merged(BASE, {"rounds.x": 1})


def test_merging_leaves_the_base_unchanged():
    before = {**BASE, "fusion": dict(BASE["fusion"])}
    merged(BASE, {"fusion.beta": 1.0, "clients.0.model": "mlp"})
    assert before == BASE


def test_hyperparameters_stay_with_their_strategy():
    assert forget_hyperparameters(BASE, {"fusion.strategy": "fedmd"})["fusion"] == {
        "strategy": "knfu",
        "distill_epochs": 3,
    }
    assert forget_hyperparameters(BASE, {"fusion.strategy": "knfu"}) == BASE
    assert forget_hyperparameters(BASE, {"fusion.beta": 1.0}) == BASE


def test_hyperparameters_stay_with_their_learner():
    stream = {"learner": "ewc", "strength": 5.0, "head": "class", "tasks": {"count": 2}}
    tables = BASE | {"continual": stream}
    kept = {"learner": "ewc", "head": "class", "tasks": {"count": 2}}
    assert forget_hyperparameters(tables, {"continual.learner": "si"}) == BASE | {"continual": kept}
    assert forget_hyperparameters(tables, {"continual.learner": "ewc"}) == tables
    assert forget_hyperparameters(tables, {"fusion.strategy": "fedmd"})["continual"] == stream
    assert "continual" not in forget_hyperparameters(BASE, {"continual.learner": "naive"})


def test_flatten_keeps_empty_tables_and_replacements():
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e!": {"f": 2}}) == {"a.b.c": 1, "a.d": {}, "e!": {"f": 2}}
