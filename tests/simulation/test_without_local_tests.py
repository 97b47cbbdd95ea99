"""`data.test_fraction = 0`: nobody has a local test set, and everything that shows accuracies copes."""

from __future__ import annotations

import json

import pytest
import tomli_w

import fedkd
from fedkd.data.load import load_data
from fedkd.errors import Interrupted
from fedkd.plan.load import parse_plan, parse_scenario
from fedkd.simulation.scenario_check import check_plan
from fedkd.tracking.events import RunObserver, RunReport
from fedkd.tracking.live import LiveProgress
from fedkd.tracking.recorder import read_epochs, read_metrics
from fedkd.tracking.wording import closing_lines

pytestmark = pytest.mark.usefixtures("no_rendering", "no_report")


@pytest.fixture
def tables(digits_scenario) -> dict:
    digits_scenario["data"] = digits_scenario["data"] | {"test_fraction": 0}
    return digits_scenario | {"training": {"lr": 0.01, "batch_size": 20, "local_epochs": 2}}


@pytest.fixture
def streamed(tables) -> dict:
    del tables["rounds"]
    return tables | {
        "data": tables["data"] | {"transfer": {"size": 20}},
        "continual": {"learner": "ewc", "tasks": {"count": 2}, "rounds_per_task": 2, "evaluate_epochs": True},
    }


class StopInEveryRound(RunObserver):
    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        if phase == "train":
            raise KeyboardInterrupt


def test_all_samples_of_a_client_are_trained_on(tables):
    data = load_data(parse_scenario(tables))
    for client in range(4):
        assert len(data.client(client).train_y) == 100 and not len(data.client(client).test_y)
    assert any("no local test sets" in line for line in check_plan(parse_plan(tables)))


@pytest.mark.parametrize("model", ["mlp", "random-forest"])
def test_a_run_without_local_tests_measures_global_accuracy(model, tables, tmp_path):
    tables |= {"clients": [{"model": model}], "training": {} if model != "mlp" else tables["training"]}
    live = LiveProgress()
    folder = fedkd.run(parse_scenario(tables), out=tmp_path / "run", observers=[live]).folder
    rows = read_metrics(folder)
    assert {row["split"] for row in rows} == {"global", "train"}
    assert all(row["value"] is not None for row in rows)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["final"]["accuracy_local"] is None
    assert summary["final"]["accuracy_global"]["mean"] > 0.2
    assert "local accuracy   –" in closing_lines(RunReport(folder, summary))


@pytest.mark.parametrize("strategy", ["knfu", "flwr:FedAvg"])
def test_a_stream_runs_without_local_tests(strategy, streamed, tmp_path):
    streamed["fusion"] = {"strategy": strategy}
    folder = fedkd.run(parse_scenario(streamed), out=tmp_path / "run").folder
    assert "local" not in {row["split"] for row in read_metrics(folder)}
    assert {row["split"] for row in read_epochs(folder)} == {"global"}
    continual = json.loads((folder / "summary.json").read_text())["continual"]
    assert continual["average_accuracy"]["mean"] > 0.2


def test_a_resumed_run_without_local_tests_is_the_same(streamed, tmp_path):
    scenario = parse_scenario(streamed)
    unbroken = fedkd.run(scenario, out=tmp_path / "unbroken").folder
    with pytest.raises(Interrupted):
        fedkd.run(scenario, out=tmp_path / "broken", observers=[StopInEveryRound()])
    fedkd.resume(tmp_path / "broken")
    for file in ("metrics.jsonl", "epochs.jsonl"):
        assert (unbroken / file).read_bytes() == (tmp_path / "broken" / file).read_bytes()


def test_benches_name_unrecorded_metrics(tables, tmp_path):
    (tmp_path / "base.toml").write_text(tomli_w.dumps(tables))
    variants = {name: {"fusion.strategy": name} for name in ("knfu", "local")}
    plan = {"seeds": [1, 2], "parallel": False, "variants": {"strategy": variants}}
    (tmp_path / "bench.toml").write_text(tomli_w.dumps({"name": "b", "base": "base.toml"} | plan))
    fedkd.bench(tmp_path / "bench.toml", out=tmp_path / "out")
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| knfu | 2 | – |" in table
    assert "Not recorded by any run: accuracy_before_fusion_local, accuracy_local" in table
