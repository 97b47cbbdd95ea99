"""Every shipped scenario loads, says what it shows, passes its check, and runs."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from reports import undrawn

from fedkd.cli.main import main
from fedkd.plan.load import load_scenario, parse_scenario
from fedkd.scenario.load import read_toml
from fedkd.scenario.shipped_files import find_shipped, list_shipped
from fedkd.scenario.stream import task_count
from fedkd.tracking.run_folder import SCENARIO_FILE

pytestmark = pytest.mark.usefixtures("no_rendering")

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "scenarios"
CALLED = {"continual/quickstart": "continual-quickstart"}
"""What a scenario is named whose file has the name of another's."""
ELSEWHERE = {"bench", "flower-app"}
"""What is no scenario: benches are run in `benchmark/`, the Flower app in `federation/test_flower_app.py`."""
PATHS = sorted(
    path for path in FOLDER.rglob("*.toml") if ELSEWHERE.isdisjoint(path.relative_to(FOLDER).parts)
)
NEEDS_NO_DATA = {"quickstart", "ten-thousand-clients", "hospital-table", "diabetes", "vowels", "text-order"}

SHORT = [
    "data.clients=4",
    "data.partition.samples_per_client=40",
    "data.test_size=60",
    "training.local_epochs=1",
]
"""What makes any scenario a matter of a second; the rest stays as it is shipped."""
SHORT_STREAM = {
    "split": ["continual.tasks.count=2", "continual.tasks.classes_per_task=2"],
    "permuted": ["continual.tasks.count=2"],
    "rotated": ["continual.tasks.count=2"],
    "overlapping": ["continual.tasks.count=2"],
    "datasets": ['continual.tasks.datasets=["digits","mnist"]'],  # its check has loaded all of them
}
"""What shortens a stream of tasks, by kind."""
SHORT_STRATEGY = {
    "target": ["fusion.samples=20", "fusion.synthesis_batch_size=20", "fusion.generator_steps=2"],
}
"""What a server does at the end of a task, by strategy."""


DRAWN = {"quickstart", "own-orders"}
"""Whose runs end with all figures, which take as long as a short run: those that show the most kinds."""
SHORT_CHECK = {"ten-thousand-clients": ["--set", "data.clients=500"]}
"""What makes the check of a scenario a matter of a second, which deals out all data, by name."""


def name_of(path: Path) -> str:
    return CALLED.get(str(path.relative_to(FOLDER).with_suffix("")), path.stem)


def by_name(paths: list[Path]) -> list:
    return [pytest.param(path, id=str(path.relative_to(FOLDER).with_suffix(""))) for path in paths]


@pytest.fixture
def with_data(request, monkeypatch):
    """Set the data root for a scenario that reads real data, or skip it where there is none."""

    def prepare(path: Path) -> None:
        if path.stem not in NEEDS_NO_DATA:
            monkeypatch.setenv("FEDKD_DATA", str(request.getfixturevalue("small_data_root")))
            request.getfixturevalue("read_once")

    return prepare


def short_overrides(path: Path) -> list[str]:
    scenario = load_scenario(path)
    if path.parent.name == "lifelong":
        return ["training.local_epochs=1"]  # their tiny clients are the point
    overrides = [*SHORT, f"data.transfer.size={min(40, scenario.data.transfer.size)}"]
    if scenario.clients_per_round is not None:
        overrides.append("clients_per_round=2")
    if scenario.evaluate_clients is not None:
        overrides.append("evaluate_clients=2")
    if scenario.continual is None:
        overrides.append("rounds=1")
    else:
        overrides += [*SHORT_STREAM[scenario.continual.tasks.kind], "continual.rounds_per_task=1"]
    overrides += SHORT_STRATEGY.get(scenario.fusion.strategy, [])
    if scenario.data.partition.scheme in ("file", "natural"):
        overrides = [text for text in overrides if "samples_per_client" not in text]
    return overrides


def test_the_repository_ships_scenarios():
    assert {path.stem for path in PATHS} >= {
        "quickstart",
        "knfu-mnist",
        "knfu-fashion",
        "knfu-cifar10-jpeg",
        "fedavg-fashion",
        "ten-thousand-clients",
    }
    assert {path.stem for path in PATHS if path.parent.name == "continual"} == {
        "quickstart",
        "split-mnist",
        "permuted-mnist",
        "overlapping-mnist",
        "datasets",
        "federated-split-mnist",
        "own-orders",
        "target",
        "fot-permuted-mnist",
        "federated-backward-transfer",
        "federated-supermasks",
        "fedweit",
    }


@pytest.mark.parametrize("path", by_name(PATHS))
def test_a_shipped_scenario_has_a_comment_and_the_name_of_its_file(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and len(first) > 20
    assert load_scenario(path).name == name_of(path)


def test_shipped_scenarios_have_distinct_names():
    for kind in ("scenario", "bench"):
        entries = list_shipped(kind)
        assert len({entry.name for entry in entries}) == len(entries) > 10
        assert all(find_shipped(entry.name, kind) == entry.path for entry in entries)
        names = [read_toml(entry.path)["name"] for entry in entries]
        assert sorted(set(names)) == sorted(names), "runs of two of them would lie in folders of one name"


@pytest.mark.parametrize("path", by_name(PATHS))
def test_a_shipped_scenario_states_its_duration(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line for line in lines[: lines.index(f'name = "{name_of(path)}"')])
    assert "on 2 cores" in comment


@pytest.mark.parametrize("path", by_name(PATHS))
def test_a_resolved_scenario_is_equivalent(path):
    scenario = load_scenario(path)
    assert parse_scenario(scenario.model_dump(exclude_none=True)) == scenario


@pytest.mark.parametrize("path", by_name(PATHS))
def test_a_shipped_scenario_passes_its_check(path, with_data, capsys):
    with_data(path)
    assert main(["check", str(path), *SHORT_CHECK.get(path.stem, [])]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("ok\n") and err == ""


@pytest.mark.parametrize("path", by_name(PATHS))
def test_a_shortened_shipped_scenario_runs(path, with_data, tmp_path, capsys):
    with_data(path)
    out = tmp_path / "run"
    words = ["run", str(path), "--out", str(out), "--engine", "inline", "--quiet"]
    with nullcontext() if path.stem in DRAWN else undrawn():
        status = main([*words, "--set", *short_overrides(path)])
    assert (status, capsys.readouterr().err) == (0, "") and (out / "report.html").exists()
    summary = json.loads((out / "summary.json").read_text())
    scenario = load_scenario(out / SCENARIO_FILE)
    assert (summary["name"], summary["status"]) == (name_of(path), "done")
    error = summary.get("metric")  # in regression
    assert 0.0 <= summary["final"][f"{error or 'accuracy'}_local"]["mean"] <= (1e3 if error else 1.0)
    assert (summary["final"]["bytes_up"] > 0) == (scenario.fusion.strategy != "local")
    if scenario.continual is None:
        assert (summary["rounds"], summary["continual"]) == (1, None)
    else:
        assert summary["rounds"] == summary["continual"]["tasks"] == task_count(scenario) > 1
