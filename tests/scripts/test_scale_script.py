"""`scripts/bench/scale.py` describes federations that can be run, and reads what runs tell."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from fedkd.plan.load import parse_scenario

PATH = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "scale.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("scale_script", PATH)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def words():
    return argparse.Namespace(rounds=20, engine="ray", live=None)


def test_sizes_differ_only_in_the_number_of_clients(script, words):
    few, many = (
        parse_scenario(script.tables_of(words, clients, script.STRATEGIES["KnFu"], 100))
        for clients in script.SIZES
    )
    assert (few.data.clients, many.data.clients) == (1_000, 10_000)
    assert few.clients_per_round == many.clients_per_round == few.evaluate_clients == 100


def test_a_thousand_clients_use_all_images(script, words):
    for model in script.MODELS.values():
        for transfer, evaluated in script.CASES:
            scenario = parse_scenario(script.usual_tables(words, model, transfer, evaluated))
            assert scenario.data.clients == 1_000 and scenario.data.test_size is None
            assert scenario.clients_per_round in (None, 1_000)
            assert (scenario.data.transfer.size, scenario.evaluate_clients) == (transfer, evaluated)


def test_the_first_round_is_left_out(script):
    timings = [{"phase": "train", "seconds": seconds} for seconds in (9.0, 2.0, 3.0, 7.0)]
    run = script.Measured([10.0, 12.0, 15.0, 19.0], timings, 1.0)
    assert (run.round, run.seconds_of("train")) == (3.0, 3.0)


def test_fusions_of_all_sizes_and_neighbours_are_listed():
    script = PATH.with_name("knfu_fusion.py")
    command = [sys.executable, script, "--sizes", "5", "20", "--samples", "3", "--repeats", "1"]
    _, _, *rows = subprocess.check_output(command, text=True).splitlines()
    told = [row.strip("| ").split(" | ")[:2] for row in rows]
    assert told == [["5", "all"], ["5", "10"], ["20", "all"], ["20", "10"]]
