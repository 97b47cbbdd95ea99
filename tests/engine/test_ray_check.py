"""Versions and files of Ray nodes are compared with the driver's."""

from __future__ import annotations

from copy import deepcopy

import pytest

import fedkd
from fedkd.engine.ray.node_check import DECIDING, differences
from fedkd.engine.ray.node_probe import look_around
from fedkd.plan.checks.no_plugins import foreign_modules
from fedkd.plan.load import parse_plan


@pytest.fixture(scope="module")
def here():
    return look_around([*DECIDING, "no-such-package"], ["rich.live", "no.such.module"])


def test_a_machine_matches_itself(here):
    assert (
        differences(here, look_around([*DECIDING, "no-such-package"], ["rich.live", "no.such.module"])) == []
    )
    assert here["packages"]["no-such-package"] is here["modules"]["no.such.module"] is None
    assert len(here["fedkd"]) == len(here["modules"]["rich.live"]) == 64


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda there: there.update(fedkd=None), "has no fedkd; install it there"),
        (
            lambda there: there.update(fedkd="0" * 64),
            "has another fedkd: its files differ from those here",
        ),
        (lambda there: there["packages"].update(torch="1.0"), "has torch 1.0, and here it is "),
        (lambda there: there["packages"].update(flwr=None), "has no flwr, and here it is "),
        (lambda there: there["modules"].update({"rich.live": None}), "lacks the module 'rich.live'"),
        (
            lambda there: there["modules"].update({"rich.live": "0"}),
            "has another version of the module 'rich.live'; install the one used here",
        ),
    ],
)
def test_missing_and_other_versions_are_named(change, told, here):
    there = deepcopy(here)
    change(there)
    [line] = differences(here, there)
    assert line.startswith(told)


def test_a_changed_file_of_fedkd_is_a_different_version(here, tmp_path, monkeypatch):
    import shutil
    from importlib import util
    from pathlib import Path

    shutil.copytree(Path(fedkd.__file__).parent, tmp_path / "fedkd", ignore=shutil.ignore_patterns("*.pyc"))
    spec = util.spec_from_file_location("fedkd", tmp_path / "fedkd" / "__init__.py")
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: spec if name == "fedkd" else find(name))
    assert look_around([], [])["fedkd"] == here["fedkd"]
    with (tmp_path / "fedkd" / "errors.py").open("a") as file:
        file.write("\n")
    assert look_around([], [])["fedkd"] != here["fedkd"]


def test_clients_need_modules_of_models_strategy_and_learner(digits_scenario, tmp_path):
    (tmp_path / "own_model.py").write_text(
        "def Own(input_shape, classes):\n    raise AssertionError('nobody builds it here')\n"
    )
    (tmp_path / "own_module.py").write_text("")
    (tmp_path / "own_data.py").write_text(
        "def make(root=None):\n    raise AssertionError('nobody loads it here')\n"
    )
    digits_scenario["clients"] = [{"model": "mlp"}, {"model": "own_model:Own"}]
    digits_scenario["plugins"] = ["own_module"]
    digits_scenario["data"] = digits_scenario["data"] | {"dataset": "own_data:make"}
    plan = parse_plan(digits_scenario, folder=tmp_path)
    assert foreign_modules(plan.scenario) == ["own_module", "own_model"]
