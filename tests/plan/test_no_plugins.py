"""``--no-plugins``: a scenario from elsewhere is looked at without running anything of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedkd.cli.main import main


@pytest.fixture
def told(tmp_path, capsys, monkeypatch):
    """Return a function from the words of a command to its status and what it said; nothing is imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.py").write_text("open('sprung', 'w').close()\n")

    def tell(*words: object) -> tuple[int, str, str]:
        status = main([str(word) for word in words])
        assert not (tmp_path / "sprung").exists() and "trap" not in sys.modules
        return status, *capsys.readouterr()

    return tell


@pytest.fixture
def write(tmp_path, digits_scenario):
    """Write the tables of a scenario that differ from those of `digits_scenario`."""

    def write_scenario(**changes: Any) -> Path:
        path = tmp_path / "scenario.toml"
        path.write_text(tomli_w.dumps(digits_scenario | changes))
        return path

    return write_scenario


def with_data(scenario: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"data": scenario["data"] | changes}


DATA = "label skew"
STREAM = {"learner": "trap:L", "rounds_per_task": 1, "tasks": {"kind": "split", "count": 2}}


@pytest.mark.parametrize(
    ("changes", "named", "knows_data"),
    [
        ({"clients": [{"model": "mlp"}, {"model": "trap:model"}]}, 'clients.1.model = "trap:model"', True),
        ({"fusion": {"strategy": "trap:S", "mine": 3}}, 'fusion.strategy = "trap:S"', True),
        ({"plugins": ["trap"]}, 'plugins.0 = "trap"', True),
        (
            {"plugins": ["trap"], "fusion": {"strategy": "theirs"}},
            'plugins.0 = "trap", fusion.strategy = "theirs"',
            True,
        ),
        ({"rounds": 2, "continual": STREAM}, 'continual.learner = "trap:L"', True),
        ({"dataset": "os:system", "args": {"command": "touch sprung"}}, 'data.dataset = "os:system"', False),
        ({"transfer": {"source": "trap:x", "size": 9}}, 'data.transfer.source = "trap:x"', False),
        ({"partition": {"scheme": "trap:deal"}}, 'data.partition.scheme = "trap:deal"', False),
    ],
)
def test_scenarios_that_need_plug_ins_give_one_line(changes, named, knows_data, told, write, digits_scenario):
    if {"dataset", "transfer", "partition"} & changes.keys():
        changes = with_data(digits_scenario, **changes)
    if "continual" in changes:
        partition = {"scheme": "iid", "samples_per_client": 40}
        changes |= with_data(digits_scenario, partition=partition, transfer={"size": 20})
    status, out, err = told("check", write(**changes), "--no-plugins")
    assert (status, err) == (0, "")
    *said, last = out.splitlines()
    assert last == "ok" and said[-1].startswith("unchecked ") and f"and the plug-ins: {named}" in said[-1]
    assert any(DATA in line for line in said) == knows_data == ("data, models" not in said[-1])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"fusion": {"strategy": "knfu", "bta": 1}}, "fusion.bta: unknown key"),
        ({"fusion": {"strategy": "flwr:FedAdm"}}, "did you mean 'FedAdam'"),
        ({"training": {"lr": -1.0}}, "training.lr: must be"),
        ({"training": {"optimizer": "adam", "momentum": 0.5}}, "training.momentum: must be left out"),
        ({"clients": [{"model": "trap:m"}, {"model": "mpl"}]}, "clients.1.model: no model named 'mpl'"),
    ],
)
def test_everything_without_plug_ins_is_checked(changes, error, told, write):
    changes = {"clients": [{"model": "trap:m"}]} | changes
    status, _, err = told("check", write(**changes), "--no-plugins")
    assert status == 2 and error in err and err.count("\n") == 1


def test_a_scenario_without_plug_ins_has_the_usual_check(told, write):
    path = write()
    assert told("check", path, "--no-plugins") == told("check", path)


def test_a_bench_lists_cells_without_plug_ins(told, write, tmp_path):
    write()
    bench = {"base": "scenario.toml", "seeds": 2, "grid": {"fusion.strategy": ["knfu", "trap:S"]}}
    path = tmp_path / "bench.toml"
    path.write_text(tomli_w.dumps(bench))
    status, out, err = told("bench", path, "--dry-run", "--no-plugins")
    assert (status, err) == (0, "")
    assert "  strategy=trap:S seed=2" in out and "cells  4 " in out
    assert out.splitlines()[-1].endswith(', which need fusion.strategy = "trap:S"')
    status, _, err = told("bench", path, "--no-plugins")
    assert status == 2 and err.startswith("error: --no-plugins: needs --dry-run")


def test_a_bench_without_plug_ins_has_the_usual_description(told, write, tmp_path):
    write()
    bench = {"base": "scenario.toml", "seeds": 1, "grid": {"fusion.strategy": ["knfu", "local"]}}
    path = tmp_path / "bench.toml"
    path.write_text(tomli_w.dumps(bench))
    status, out, _ = told("bench", path, "--dry-run", "--no-plugins")
    assert status == 0 and out.count("to do") == 2 and "one round of the cell" in out
