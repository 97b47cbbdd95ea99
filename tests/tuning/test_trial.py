"""One run of a trial: its curve, and where it is stopped."""

from __future__ import annotations

import json
from statistics import median

import pytest
import tomli_w

from fedkd.benchmark import Basis
from fedkd.errors import UserError
from fedkd.scenario.schema import Scenario
from fedkd.tracking.events import RoundReport
from fedkd.tuning.objective import OBJECTIVES, PREFIX, Curve, check_metric, check_metric_of, final_value
from fedkd.tuning.schema import load_search
from fedkd.tuning.trials import TRIAL, Rule, _Follower, read_record

METRIC = "validation/accuracy_local"
OTHERS = ({1: 0.2, 2: 0.5, 3: 0.6}, {1: 0.3, 2: 0.4, 3: 0.9}, {1: 0.1, 2: 0.7, 3: 0.8})


def scenario_of(**tables) -> Scenario:
    return Scenario.model_validate({"name": "demo", "seed": 4, "rounds": 4, **tables})


def stopped_after(values, tmp_path, others=OTHERS, **changes) -> int | None:
    rule = Rule(METRIC, **({"prunes": True, "startup": 3, "warmup": 0} | changes), known={4: others})
    follower = _Follower(rule, scenario_of())
    follower.run_started(scenario_of(), tmp_path, 0)
    for round, value in enumerate(values, start=1):
        try:
            follower.round_finished(RoundReport(round, 4, accuracy_local=value))
        except KeyboardInterrupt:
            assert follower.stopped == round
            return round
    assert follower.stopped is None
    return None


@pytest.mark.parametrize("values", [(0.15, 0.9, 0.9), (0.2, 0.45, 0.9), (0.3, 0.6, 0.75), (0.55, 0.1, 0.1)])
def test_a_run_below_the_median_of_the_others_is_stopped(values, tmp_path):
    pytest.importorskip("optuna")
    expected = None
    for round in (1, 2, 3):
        if max(values[:round]) < median(other[round] for other in OTHERS):
            expected = round
            break
    assert stopped_after(values, tmp_path) == expected


@pytest.mark.parametrize(
    "changes", [{"prunes": False}, {"startup": 4}, {"warmup": 3}, {"others": ()}, {"others": OTHERS[:2]}]
)
def test_a_run_is_not_stopped_too_early(changes, tmp_path):
    pytest.importorskip("optuna")
    assert stopped_after((0.0, 0.0, 0.0), tmp_path, **changes) is None


def behind_forecast(values, tmp_path, **changes) -> int | None:
    ends = [0.5 + 0.02 * n for n in range(12)]
    others = tuple({round: end * (1 - 0.5**round) for round in range(1, 5)} for end in ends)
    return stopped_after(values, tmp_path, others, basis=Basis.of(others, 0.9), **changes)


def test_a_run_is_stopped_once_its_forecast_ends_below_the_best(tmp_path):
    assert behind_forecast((0.1, 0.15, 0.18), tmp_path) == 1
    assert behind_forecast((0.1, 0.15, 0.18), tmp_path, warmup=2) == 3
    assert behind_forecast((0.36, 0.54, 0.63), tmp_path) is None
    assert behind_forecast((0.1, 0.15, 0.18), tmp_path, startup=13) is None


def test_forecasts_need_a_metric_without_tasks(tmp_path, digits_scenario):
    search = {"training.lr": [0.1, 0.2]}
    tables = {"scenario": digits_scenario, "search": search, "pruner": "forecast"}
    (tmp_path / "tune.toml").write_text(tomli_w.dumps(tables))
    assert load_search(tmp_path / "tune.toml").spec.pruner == "forecast"
    averaged = ["metric='validation/average_accuracy_task_incremental'"]
    with pytest.raises(UserError, match="must be median or none") as error:
        load_search(tmp_path / "tune.toml", averaged)
    assert error.value.key == "pruner"


def test_rounds_without_evaluation_and_the_last_stop_no_run(tmp_path):
    pytest.importorskip("optuna")
    others = ({4: 0.9},) * 3
    assert stopped_after((None, None, None, 0.0), tmp_path, others) is None


def test_the_curve_of_a_stream_is_the_average_over_its_tasks_so_far():
    continual = {"tasks": {"count": 2}, "head": "task", "rounds_per_task": 2}
    scenario = scenario_of(continual=continual, data={"clients": 3})
    curve = Curve("validation/average_accuracy_task_incremental", scenario)
    for round, task in ((1, 0), (2, 0), (3, 1)):
        metrics = {f"accuracy_task_incremental/global/{t}": round / 10 + t / 2 for t in range(task + 1)}
        curve.add(RoundReport(round, 4, metrics=metrics, task=task))
    assert curve.values == pytest.approx({1: 0.1, 2: 0.2, 3: (0.3 + 0.8) / 2})
    assert curve.add(RoundReport(4, 4, task=1)) is None


def test_a_curve_continues_from_its_records():
    curve = Curve("validation/accuracy_before_fusion_global", scenario_of())
    row = {"client": None, "task": None, "split": "global", "metric": "accuracy_before_fusion"}
    rows = [
        {**row, "round": 1, "value": 0.5},
        {**row, "round": 2, "value": 0.75},
        {**row, "round": 3, "value": 0.8},
        {**row, "round": 1, "value": 0.1, "client": 0},
        {**row, "round": 1, "value": 0.2, "split": "local"},
    ]
    curve.recall(rows, 2)
    assert curve.values == {1: 0.5, 2: 0.75}
    curve.add(RoundReport(3, 4, accuracy_before_fusion_global=0.875))
    assert curve.values[3] == 0.875


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("accuracy_local", "a search must not use.*'validation/accuracy_local'"),
        ("accuracy_global", "a search must not use"),
        ("average_accuracy_class_incremental", "a search must not use"),
        ("bytes_up", "accuracy on held-out samples"),
        ("validation/bwt", "accuracy on held-out samples"),
        ("validation/accuracy_loca", "did you mean 'validation/accuracy_local'"),
    ],
)
def test_metrics_of_test_samples_are_refused(name, message):
    with pytest.raises(UserError, match=message) as caught:
        check_metric(name)
    assert caught.value.key == "metric"


def test_metrics_missing_in_a_scenario_are_refused():
    average = f"{PREFIX}average_accuracy_domain_incremental"
    with pytest.raises(UserError, match="has none"):
        check_metric_of(average, scenario_of())
    stream = scenario_of(continual={"tasks": {"count": 2}, "head": "task"})
    with pytest.raises(UserError, match=r"allowed: validation/average_accuracy_task_incremental"):
        check_metric_of(average, stream)
    for name in OBJECTIVES[:5]:
        check_metric_of(name, stream)


def test_the_final_value_comes_from_the_summary():
    summary = {
        "final": {"accuracy_local": {"mean": 0.5}, "accuracy_global": None},
        "continual": {"average_accuracy_task_incremental": {"mean": 0.25}},
    }
    assert final_value("validation/accuracy_local", summary) == 0.5
    assert final_value("validation/accuracy_global", summary) is None
    assert final_value("validation/average_accuracy_task_incremental", summary) == 0.25


GOOD = {"status": "pruned", "value": 0.5, "curve": [[1, 0.5]], "error": ""}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        json.dumps(GOOD | {"status": "fine"}),
        json.dumps(GOOD | {"value": "much"}),
        json.dumps(GOOD | {"curve": [[1]]}),
        json.dumps(GOOD | {"curve": None}),
        json.dumps(GOOD | {"status": "done"}),  # and there is no summary
        json.dumps({"status": "pruned"}),
        "[" * 5000,
    ],
)
def test_damaged_records_are_ignored(content, tmp_path):
    (tmp_path / TRIAL).write_text(content)
    assert read_record(tmp_path) is None
    (tmp_path / TRIAL).write_text(json.dumps(GOOD))
    record = read_record(tmp_path)
    assert record is not None and (record.status, record.curve) == ("pruned", {1: 0.5})
