"""What `scripts/bench/round.py` has to be right about before it measures anything."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "round.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("round_script", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_every_driver_exists(script):
    assert all((script.PEERS / file).is_file() for file in script.DRIVERS.values())
    assert {*script.STRANGERS, *script.ONE_THREAD} < set(script.DRIVERS)


@pytest.mark.parametrize(
    ("driver", "lanes"),
    [("floor", "2"), ("fedkd", "2"), ("pfl", "2"), ("fluke", "2"), ("fluke-1", "1"), ("blazefl", "2")],
)
def test_a_driver_runs_in_the_lanes_that_it_supports(script, driver, lanes, monkeypatch, tmp_path):
    commands = []
    told = {"moments": [5.0, 7.0, 8.0, 11.0], "accuracies": [0.1, 0.2, 0.3, 0.4]}

    def run(command, env, **_):
        commands.append((command, env))
        return subprocess.CompletedProcess(command, 0, f"progress\n{json.dumps(told)}\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    took = script.drive(driver, "/peers/python", tmp_path, 4, 2)
    ((command, env),) = commands
    assert (took.first, took.steady, took.accuracy) == (5.0, 2.0, 0.4)
    assert command[0] == "/peers/python"
    assert command[-4:] == [str(script.PEERS / script.DRIVERS[driver]), str(tmp_path), "4", lanes]
    assert env["OMP_NUM_THREADS"] == "1" and env["PYTHONPATH"] == ""  # others do not meet this fedkd


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fluke", "fedkd", "fluke-1"], "fluke, fluke-1: say where it is installed, by --peers-python"),
        (["blazefl", "fedkd"], "blazefl: say where it is installed, by --blazefl-python"),
        (
            ["pfl", "blazefl", "--peers-python", "python3"],
            "blazefl: say where it is installed, by --blazefl-python",
        ),
    ],
)
def test_a_missing_framework_is_reported(words, told, script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["round.py", "--drivers", "floor", *words])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
