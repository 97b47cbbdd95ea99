"""The forecast of the duration of a run."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "scripts" / "cluster" / "forecast.py"
SPEC = importlib.util.spec_from_file_location("forecast_script", PATH)
SCRIPT = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = SCRIPT  # where dataclasses look their annotations up
SPEC.loader.exec_module(SCRIPT)
Parts, RunSize, forecast = SCRIPT.Parts, SCRIPT.RunSize, SCRIPT.forecast

PARTS = Parts(message=0.002, train=0.5, evaluate=0.1, save=0.01, fuse=3.0, start=20.0)
SIZE = RunSize(
    clients=1_000_000,
    per_round=1000,
    evaluated=500,
    rounds=100,
    actors=50,
    evaluate_every=10,
    checkpoint_every=20,
)


def test_the_forecast_equals_a_hand_computation():
    found = forecast(PARTS, SIZE)
    assert found.train == pytest.approx(1000 / 50 * 0.5 + 0.5)  # 10.5: the actors
    assert found.evaluate == pytest.approx(500 / 50 * 0.1 + 0.1)  # 1.1, and the server needs 1.0
    assert found.save == pytest.approx(20_000 * 0.002 + 0.01)  # the server
    assert found.round == pytest.approx(10.5 + 3.0 + 0.11 + 40.01 / 20)
    assert found.run == pytest.approx(20 + 2000 + 100 * found.round)
    assert found.busy == pytest.approx(10 / 10.5)


def test_extra_actors_do_not_help_a_busy_server():
    times = [forecast(PARTS, replace(SIZE, actors=actors)).train for actors in (1, 10, 250, 251, 100_000)]
    assert times == sorted(times, reverse=True)
    assert times[0] == pytest.approx(500.5)
    assert times[2:] == [pytest.approx(2.5)] * 3


def test_one_actor_serves_all_changed_clients():
    few = replace(SIZE, clients=1000, actors=1, evaluated=0)
    assert forecast(PARTS, few).save == pytest.approx(1000 * 0.01 + 0.01)
    assert forecast(PARTS, few).evaluate == 0
    with pytest.raises(ValueError, match="actor"):
        forecast(PARTS, replace(few, actors=0))


@pytest.mark.slow
def test_the_forecast_script_measures_all_parts_of_a_scenario(digits_toml, ray_session):
    parts = SCRIPT.measured(digits_toml, clients=3, rounds=2, times=1)
    assert min(parts.message, parts.train, parts.evaluate, parts.save, parts.fuse) > 0
    *_, line = SCRIPT.table(parts, [SIZE]).splitlines()
    assert line.split()[0] == "50" and line.endswith("%")
