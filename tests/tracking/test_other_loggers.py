"""TensorBoard and MLflow, by what their own readers find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedkd.scenario.schema import Scenario
from fedkd.tracking.events import RoundReport, RunReport
from fedkd.tracking.loggers.registry import make_loggers
from fedkd.tracking.neighbours import write_neighbours
from fedkd.tracking.recorder import METRICS_FILE, SUMMARY_FILE, Recorder


def scenario_of(**tracking) -> Scenario:
    continual = {"tasks": {"count": 2}, "head": "task", "rounds_per_task": 2}
    tables = {"name": "demo", "seed": 4, "rounds": 4, "continual": continual, "data": {"clients": 2}}
    return Scenario.model_validate({**tables, "tracking": tracking})


def play(scenario: Scenario, folder: Path, rounds: range, *, finish: bool) -> None:
    """Have a run of four rounds over two tasks logged, or a part of one."""
    told: list[str] = []
    (logger,) = make_loggers(scenario, told.append)
    if rounds[0] == 1:
        (folder / METRICS_FILE).touch()
    with logger:
        logger.run_started(scenario, folder, rounds[0] - 1)
        for round in rounds:
            metrics = {f"accuracy_task_incremental/global/{t}": 0.1 * round + 0.5 * t for t in (0, 1)}
            write_neighbours(folder, round, (0, 1), np.eye(2))
            start = (folder / METRICS_FILE).stat().st_size
            with Recorder(folder, offsets={METRICS_FILE: start}) as recorder:
                for key, value in metrics.items():
                    metric, _, t = key.split("/")
                    recorder.metric(metric, value, round=round, split="global", task=int(t))
                for client in (0, 1):
                    recorder.metric("accuracy", 0.2 + client / 2, round=round, client=client, split="local")
            report = RoundReport(round, 4, accuracy_local=round / 4, metrics=metrics, task=(round - 1) // 2)
            logger.round_finished(report)
        if finish:
            logger.run_finished(RunReport(folder, {"seconds": 1.0}))
    assert told == []


def test_tensorboard_reads_the_log_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scenario = scenario_of(tensorboard={"pictures_every": 2})
    play(scenario, tmp_path, range(1, 4), finish=False)
    play(scenario, tmp_path, range(3, 5), finish=True)  # from the checkpoint of round 2 on
    found = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0, "images": 0, "histograms": 0})
    found.Reload()
    scalars = [(event.step, event.value) for event in found.Scalars("local/accuracy")]
    assert scalars == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert [event.step for event in found.Scalars("by_task/average_accuracy_task_incremental")] == [0, 1]
    last = found.Scalars("by_task/average_accuracy_task_incremental")[-1].value
    assert last == pytest.approx((0.4 + 0.9) / 2)
    assert [event.step for event in found.Images("fusion/weights")] == [1, 2, 4]
    assert [event.step for event in found.Images("continual/accuracy_matrix_task_incremental")] == [2, 4]
    histogram = found.Histograms("clients/local/accuracy")[0].histogram_value
    assert (histogram.num, histogram.min, histogram.max) == (2, pytest.approx(0.2), pytest.approx(0.7))
    assert "rounds_per_task = 2" in str(found.Tensors("scenario/text_summary")[0].tensor_proto)


def test_tensorboard_shows_several_runs(tmp_path):
    pytest.importorskip("tensorboard")
    folder = tmp_path / "runs" / "cell-1"
    folder.mkdir(parents=True)
    play(scenario_of(tensorboard={"folder": str(tmp_path / "board")}), folder, range(1, 2), finish=False)
    assert len(list((tmp_path / "board" / "cell-1").glob("events.*"))) == 1


def test_mlflow_reads_the_log_after_a_resume(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    told = {"tags": {"lab": "here"}, "artifacts": ["record"], "pictures_every": 2}
    scenario = scenario_of(mlflow=told)
    play(scenario, tmp_path, range(1, 3), finish=False)
    client = MlflowClient((tmp_path / "mlruns").as_uri())
    identity = (tmp_path / "mlflow-id").read_text().strip()
    assert client.get_run(identity).info.status == "KILLED"
    (tmp_path / SUMMARY_FILE).write_text("{}\n")
    play(scenario, tmp_path, range(3, 5), finish=True)
    run = client.get_run(identity)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "demo-seed4")
    assert client.get_experiment(run.info.experiment_id).name == "fedkd"
    assert (run.data.tags["lab"], run.data.params["continual.tasks.count"]) == ("here", "2")
    scalars = [(point.step, point.value) for point in client.get_metric_history(identity, "local/accuracy")]
    assert scalars == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    by_task = client.get_metric_history(identity, "by_task/average_accuracy_task_incremental")
    assert [point.step for point in by_task] == [0, 1]
    assert run.data.metrics["clients/local/accuracy/median"] == pytest.approx(0.45)
    pictures = [Path(file.path).name for file in client.list_artifacts(identity, "pictures/fusion/weights")]
    assert sorted(pictures) == ["round-00001.png", "round-00002.png", "round-00004.png"]
    assert {Path(file.path).name for file in client.list_artifacts(identity, "record")} == {
        METRICS_FILE,
        SUMMARY_FILE,
        "timings.jsonl",
    }
