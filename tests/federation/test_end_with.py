"""A run ends with fusion or with one more local training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from stopping import StopInRound

import fedkd
from fedkd.cli.main import main
from fedkd.errors import Interrupted
from fedkd.plan.load import load_scenario

pytestmark = pytest.mark.usefixtures("no_report")

ROUNDS = 2


@pytest.fixture
def write(digits_scenario, tmp_path) -> Callable[..., Path]:
    """Return a function from a name and changed tables to the path of a scenario."""

    def make(name: str, **changes: Any) -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(tomli_w.dumps(digits_scenario | {"rounds": ROUNDS} | changes))
        return path

    return make


def values(result: fedkd.RunResult, round: int, metric: str) -> dict[tuple[int | None, str], float]:
    return {
        (row["client"], row["split"]): row["value"]
        for row in result.metrics()
        if (row["round"], row["metric"]) == (round, metric)
    }


@pytest.mark.parametrize("strategy", ["knfu", "fedproto", "flwr:FedAvg"])
def test_the_last_training_equals_that_of_the_next_round(strategy, write, tmp_path):
    """So a run that ends trained stands where a run of one round more stands before its guidance."""
    fusion = {"strategy": strategy}
    trained = fedkd.run(
        load_scenario(write("trained", fusion=fusion, end_with="training")), out=tmp_path / "trained"
    )
    longer = fedkd.run(
        load_scenario(write("longer", fusion=fusion, rounds=ROUNDS + 1)), out=tmp_path / "longer"
    )
    end = values(trained, ROUNDS + 1, "accuracy")
    assert len(end) == 2 * (4 + 1) and end == values(longer, ROUNDS + 1, "accuracy_before_fusion")
    assert (
        values(trained, ROUNDS + 1, "loss")[None, "train"]
        == values(longer, ROUNDS + 1, "loss")[None, "train"]
    )
    assert values(trained, ROUNDS, "accuracy") == values(longer, ROUNDS, "accuracy")
    assert not values(trained, ROUNDS + 1, "fusion_gain"), "nobody was guided in it"
    final = trained.summary["final"]["accuracy_global"]
    assert final["mean"] == pytest.approx(end[None, "global"])
    assert trained.summary["rounds"] == ROUNDS


def test_all_clients_train_at_the_end(write, tmp_path):
    path = write("sampled", clients_per_round=2, end_with="training")
    result = fedkd.run(load_scenario(path), out=tmp_path / "out")
    trained = {client for client, split in values(result, ROUNDS + 1, "loss") if split == "train"}
    assert trained == {None, 0, 1, 2, 3}


def test_fedbabu_is_measured_before_and_after_its_fine_tuning(write, tmp_path):
    result = fedkd.run(
        load_scenario(write("babu", fusion={"strategy": "fedbabu"}, end_with="training")),
        out=tmp_path / "out",
    )
    before, after = (values(result, ROUNDS + n, "loss")[None, "local"] for n in (0, 1))
    assert after < before, "a head that was never trained against one that was"
    assert len(values(result, ROUNDS, "accuracy")) == len(values(result, ROUNDS + 1, "accuracy")) == 10


def test_a_run_stopped_before_the_last_training_resumes_with_it(write, tmp_path):
    path = write("run", end_with="training")
    fedkd.run(load_scenario(path), out=tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        fedkd.run(load_scenario(path), out=tmp_path / "stopped", observers=[StopInRound(ROUNDS)])
    fedkd.resume(tmp_path / "stopped")
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("unbroken", "stopped")]
    assert metrics[0] == metrics[1]


def test_a_stream_cannot_end_with_training(write, capsys):
    continual = {"learner": "naive", "head": "task", "tasks": {"kind": "split", "count": 2}}
    path = write("stream", end_with="training", continual=continual)
    assert main(["check", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}: end_with: ") and len(said.splitlines()) == 1
