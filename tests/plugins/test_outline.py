"""Outlines of built-in parts say the same as the parts."""

import inspect

import pytest
from flwr.serverapp import strategy as flower

from fedkd.cli.families import family_of_learner, has_note
from fedkd.continual import LEARNERS
from fedkd.federation.flower_strategies import flower_outlines, flower_strategy_names
from fedkd.models import MODELS
from fedkd.plugins import Outline


@pytest.mark.parametrize("name", LEARNERS.builtin)
def test_outlines_of_learners(name):
    outline, learner = LEARNERS.outline(name), LEARNERS.load(name)
    assert isinstance(outline, Outline)
    assert inspect.getdoc(outline) == inspect.getdoc(learner)
    assert family_of_learner(outline) == family_of_learner(learner)
    assert has_note(outline) == has_note(learner)


@pytest.mark.parametrize("name", MODELS.builtin)
def test_outlines_of_models(name):
    outline, factory = MODELS.outline(name), MODELS.load(name)
    assert inspect.getdoc(outline) == inspect.getdoc(factory)
    parameters = inspect.signature(factory).parameters.values()
    told = [(p.name, p.kind, p.default) for p in parameters if p.kind is not p.VAR_KEYWORD]
    assert [(p.name, p.kind, p.default) for p in outline.signature().parameters.values()] == told


def test_outlines_of_flowers_strategies():
    outlines = flower_outlines()
    assert tuple(outlines) == flower_strategy_names()
    for name, outline in outlines.items():
        assert inspect.getdoc(outline) == inspect.getdoc(getattr(flower, name))


def test_a_plug_in_is_loaded():
    @LEARNERS.register("an_outline_of_mine")
    class Mine:
        """It is mine."""

    try:
        assert LEARNERS.outline("an_outline_of_mine") is Mine
    finally:
        del LEARNERS._registered["an_outline_of_mine"]
