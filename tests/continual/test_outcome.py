"""Continual metrics of a run from its recorded rows."""

from __future__ import annotations

import json
from math import isnan, nan
from typing import Any

import numpy as np
import pytest
import tomli_w

import fedkd
from fedkd.continual.metrics.metrics import forgetting_first_last, learning_area
from fedkd.continual.metrics.outcome import StreamOutcome, stream_outcome
from fedkd.plan.load import load_scenario
from fedkd.plan.schedule_builder import build_schedule
from fedkd.report.run_summary import _continual
from fedkd.scenario.schema import Scenario
from fedkd.scenario.stream import accuracy_name, evaluation_protocols, main_protocol

pytestmark = pytest.mark.usefixtures("no_rendering")

ROUNDS_PER_TASK = 2
# Accuracy of two clients on three tasks, task given, common test sets: before any task and after each.
FIRST = [[0.5, 0.5, 0.4], [0.9, 0.6, nan], [0.8, 1.0, 0.5], [0.7, 0.8, 0.9]]
SECOND = [[0.5, 0.4, 0.5], [0.8, 0.5, nan], [0.9, 0.6, 0.6], [0.5, 0.6, 1.0]]


def scenario_of(tasks: int = 3, head: str = "task", clients: int = 2, **training: Any) -> Scenario:
    continual = {"tasks": {"count": tasks}, "head": head, "rounds_per_task": ROUNDS_PER_TASK}
    tables = {"rounds": tasks * ROUNDS_PER_TASK, "data": {"clients": clients}, "training": training}
    return Scenario.model_validate({**tables, "continual": continual})


def outcome_of(rows, scenario: Scenario, **options: Any) -> StreamOutcome:
    return stream_outcome(rows, scenario, build_schedule(scenario).every_course(), **options)


def row(round: int, client: int | None, task: int | None, metric: str, value: float | None, split="global"):
    return {"round": round, "client": client, "task": task, "split": split, "metric": metric, "value": value}


def rows_of(matrix: list[list[float]], client: int | None, protocol="task_incremental", split="global"):
    """Return what is recorded of a matrix, with rows of rounds within tasks that must not count."""
    for learned, accuracies in enumerate(matrix):
        for task, value in enumerate(accuracies):
            if isnan(value):
                continue
            end = learned * ROUNDS_PER_TASK
            yield row(end, client, task, accuracy_name(protocol), value, split)
            if learned:
                yield row(end - 1, client, task, accuracy_name(protocol), 0.123, split)


def steps_of(client: int, tasks=range(3)):
    """Return what is recorded of a client that trains in the first round of some tasks."""
    return [row(task * ROUNDS_PER_TASK + 1, client, None, "loss", 0.5, "train") for task in tasks]


def recorded(drops=(), **options: Any):
    mean = np.mean([FIRST, SECOND], axis=0).tolist()
    rows = [*rows_of(FIRST, 0), *rows_of(SECOND, 1), *rows_of(mean, None), *steps_of(0), *steps_of(1), *drops]
    return outcome_of(rows, scenario_of(), **options)


def test_client_metrics_equal_a_hand_computation():
    outcome = recorded()
    test = outcome.test("task_incremental", "global")
    assert outcome.values(test, "average_accuracy") == pytest.approx({0: 0.8, 1: 0.7})
    # Means of 0.9, (0.8 + 1.0) / 2, 0.8 and of 0.8, (0.9 + 0.6) / 2, 0.7.
    assert outcome.values(test, "average_incremental_accuracy") == pytest.approx({0: 2.6 / 3, 1: 0.75})
    assert outcome.values(test, "bwt") == pytest.approx({0: -0.2, 1: -0.15})
    assert outcome.values(test, "fwt") == pytest.approx({0: 0.1, 1: 0.1})
    # The second client knew the first task best after the second one.
    assert outcome.values(test, "forgetting") == pytest.approx({0: 0.2, 1: 0.2})
    assert outcome.values(test, "forgetting_first_last") == pytest.approx({0: 0.2, 1: 0.15})
    assert outcome.values(test, "nbt") == pytest.approx({0: (0.15 + 0.2) / 2, 1: (0.1 + 0.0) / 2})
    np.testing.assert_allclose(test.R[1], [0.85, 0.8, 0.55])
    np.testing.assert_allclose(test.b, [0.5, 0.45, 0.45])
    np.testing.assert_array_equal(test.clients[1][0], np.array(SECOND[1:]))


def test_metrics_of_the_scenarios_protocol_have_plain_names():
    unknown = [[0.25 * value for value in accuracies] for accuracies in FIRST]
    local = [[0.5 * value for value in accuracies] for accuracies in FIRST]
    rows = [*rows_of(FIRST, 0), *rows_of(unknown, 0, "class_incremental"), *rows_of(local, 0, split="local")]
    rows += rows_of([[0.75 * v for v in accuracies] for accuracies in FIRST], 0, "class_incremental", "local")
    one = outcome_of(rows, scenario_of(clients=1))
    other = outcome_of(rows, scenario_of(clients=1, head="class"))
    assert (one.evaluation, other.evaluation) == ("task_incremental", "class_incremental")
    for outcome, plain, own in ((one, 0.8, 0.4), (other, 0.2, 0.6)):
        figures = outcome.figures()
        assert figures["average_accuracy"] == pytest.approx({0: plain})
        assert figures["average_accuracy_task_incremental"] == pytest.approx({0: 0.8})
        assert figures["average_accuracy_class_incremental"] == pytest.approx({0: 0.2})
        assert figures["average_accuracy_local"] == pytest.approx({0: own})
        assert outcome.tasks == 3


def test_uncounted_clients_are_left_out_of_means_only():
    outcome = recorded(counted={1})
    assert outcome.figures()["bwt"] == pytest.approx({1: -0.15})
    assert outcome.test("task_incremental", "global").metrics[0]["bwt"] == pytest.approx(-0.2)


def test_unmeasured_values_are_nan_for_their_client_only():
    rows = [*rows_of(FIRST, 0), *(r for r in rows_of(SECOND, 1) if r["task"] != 1)]
    figures = outcome_of(rows, scenario_of()).figures()
    assert figures["average_accuracy"][0] == pytest.approx(0.8)
    assert isnan(figures["average_accuracy"][1])


def test_one_task_has_no_forgetting():
    rows = [row(0, 0, 0, "accuracy_task_incremental", 0.1), row(2, 0, 0, "accuracy_task_incremental", 0.9)]
    figures = outcome_of([*rows, *steps_of(0, [0])], scenario_of(tasks=1, clients=1)).figures()
    assert figures["average_accuracy"] == {0: 0.9}
    for name in ("bwt", "fwt", "forgetting", "nbt", "temporal_forgetting"):
        assert isnan(figures[name][0])


# What was learned -------------------------------------------------------------------------------------


def test_missed_tasks_are_left_out_of_comparisons_with_learning():
    # The second client meets the second task first in the third: it trains on 0 and on 2.
    rows = [*rows_of(FIRST, 0), *rows_of(SECOND, 1), *steps_of(0), *steps_of(1, [0, 2])]
    rows += [row(5, 1, 1, "temporal_forgetting", 0.25), row(5, 1, 0, "temporal_forgetting", 0.375)]
    outcome = outcome_of(rows, scenario_of())
    figures = outcome.figures()
    # Of the second client: 0.5 − 0.8 on task 0 alone; with task 1 it would have been (−0.3 + 0.0) / 2.
    assert figures["bwt"] == pytest.approx({0: -0.2, 1: -0.3})
    assert figures["forgetting"] == pytest.approx({0: 0.2, 1: 0.4})  # its best was 0.9, after task 1
    assert figures["forgetting_first_last"] == pytest.approx({0: 0.2, 1: 0.3})
    assert figures["nbt"] == pytest.approx({0: (0.15 + 0.2) / 2, 1: 0.1})  # 0.8 − (0.9 + 0.5) / 2
    assert figures["temporal_forgetting"][1] == 0.375
    # Tasks 1 and 2 come after one that it learned, and all three count among accuracies.
    assert figures["fwt"] == pytest.approx({0: 0.1, 1: 0.1})
    assert figures["average_accuracy"] == pytest.approx({0: 0.8, 1: 0.7})
    assert figures["average_incremental_accuracy"][1] == pytest.approx(0.75)


def test_a_client_with_one_learned_task_has_nan_forgetting():
    figures = outcome_of([*rows_of(SECOND, 1), *steps_of(1, [2])], scenario_of()).figures()
    for name in ("bwt", "forgetting", "fwt", "nbt", "temporal_forgetting"):
        assert isnan(figures[name][1])
    assert figures["average_accuracy"][1] == pytest.approx(0.7)


def test_a_summary_states_the_number_of_clients_of_a_mean():
    rows = [*rows_of(FIRST, 0), *rows_of(SECOND, 1), *steps_of(0), *steps_of(1, [2])]
    table = _continual(outcome_of(rows, scenario_of()))
    assert (table["average_accuracy"]["n"], table["bwt"]["n"], table["bwt"]["mean"]) == (2, 1, -0.2)


def test_clients_with_a_shared_model_share_learned_tasks():
    rows = [*rows_of(SECOND, 1), *steps_of(1, [0, 2]), *steps_of(0, [1])]
    for models, bwt in (("aa", -0.15), ("ab", -0.3), (None, -0.3)):
        assert outcome_of(rows, scenario_of(), models=models).figures()["bwt"][1] == pytest.approx(bwt)


def test_only_learned_tasks_need_a_curve():
    epochs = [epoch(round, 1, 1, 0.5) for round in (1, 2, 5, 6)]
    rows = [*rows_of(SECOND, 1), *steps_of(1, [0, 2])]
    figures = outcome_of(rows, scenario_of(), epochs=epochs).figures()
    # Before task 0 it was at 0.5, before task 2 at 0.6.
    assert figures["learning_area"][1] == pytest.approx((0.5 + (0.6 + 1.0) / 3) / 2)


# Causes of forgetting ---------------------------------------------------------------------------------


def test_drops_are_summed_over_rounds_and_averaged_over_old_tasks():
    drops = [
        row(3, 0, 0, "temporal_forgetting", 0.25),
        row(4, 0, 0, "temporal_forgetting", -0.125),
        row(5, 0, 1, "temporal_forgetting", 0.5),
        row(4, 0, 0, "spatial_forgetting", -0.25),
        row(3, 1, 0, "temporal_forgetting", 1.0),
    ]
    figures = recorded(drops).figures()
    assert figures["temporal_forgetting"] == {0: (0.125 + 0.5) / 2, 1: 0.5}
    assert figures["spatial_forgetting"][0] == -0.125
    assert isnan(figures["spatial_forgetting"][1]), "no guidance reached it"
    assert "temporal_forgetting_class_incremental" not in figures


# Learning curves --------------------------------------------------------------------------------------


def epoch(round: int, client: int, epoch: int, value: float | None, split="global"):
    task = (round - 1) // ROUNDS_PER_TASK
    one = row(round, client, task, "accuracy", value, split)
    return {**one, "epoch": epoch}


def test_a_curve_starts_before_its_task_and_has_every_epoch():
    curves = [[0.6, 0.7, 0.8, 0.9], [0.7, 0.8, 0.9, 1.0], [0.6, 0.7, 0.8, 0.9]]
    epochs = [
        epoch(ROUNDS_PER_TASK * task + 1 + place // 2, 0, 1 + place % 2, value)
        for task, values in enumerate(curves)
        for place, value in enumerate(values)
    ]
    scenario = scenario_of(clients=1, local_epochs=2)
    figures = outcome_of([*rows_of(FIRST, 0), *steps_of(0)], scenario, epochs=epochs).figures()
    # Before: the untrained model, then what the tasks before made of it.
    areas = [(0.5 + 3.0) / 5, (0.6 + 3.4) / 5, (0.5 + 3.0) / 5]
    assert figures["learning_area"] == pytest.approx({0: sum(areas) / 3})
    assert figures["epochs_to_90"] == {0: pytest.approx(11 / 3)}  # 0.81 after 4, 0.9 after 3, 0.81 after 4
    per_task = [(areas[0] + 0.8 + 0.7) / 3, (areas[1] + 0.8) / 2, areas[2]]
    assert figures["auc"] == pytest.approx({0: sum(per_task) / 3})
    assert "auc_class_incremental" not in figures


def test_a_curve_with_a_gap_has_no_area():
    epochs = [epoch(round, client, 1, 0.5) for round in range(1, 7) for client in (0, 1)]
    outcome = recorded(epochs=[e for e in epochs if (e["round"], e["client"]) != (4, 1)])
    areas, epochs_to_90 = outcome.figures()["learning_area"], outcome.figures()["epochs_to_90"]
    assert areas[0] == pytest.approx((1.5 + 1.6 + 1.5) / 9) and isnan(areas[1])
    assert epochs_to_90[0] == 0 and isnan(epochs_to_90[1])


def test_without_epochs_there_is_no_learning_area():
    assert not {"learning_area", "epochs_to_90", "auc"} & recorded().figures().keys()


# Bytes ------------------------------------------------------------------------------------------------


def test_memory_bytes_are_measured_after_the_last_task():
    rows = [
        row(2 * (task + 1), client, task, metric, factor * 30 * (task + 1) * (client + 1), "train")
        for metric, factor in (("peak_bytes", 2), ("stored_bytes", 1))
        for task in (2, 0, 1)
        for client in (0, 1)
    ]
    figures = outcome_of(rows, scenario_of()).figures()
    assert figures["stored_bytes"] == {0: 90, 1: 180}
    assert figures["stored_bytes_per_task"] == {0: 30, 1: 60}
    assert figures["peak_bytes"] == {0: 180, 1: 360}


# A run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three clients over three pairs of digits, with guidance and curves."""
    folder = tmp_path_factory.mktemp("stream")
    tables = {
        "name": "stream-test",
        "seed": 7,
        "data": {
            "clients": 3,
            "partition": {"scheme": "iid", "samples_per_client": 40},
            "transfer": {"size": 30},
        },
        "clients": [{"model": "mlp"}],
        "training": {"lr": 0.01, "batch_size": 20, "local_epochs": 2},
        "fusion": {"strategy": "knfu"},
        "faults": {"poisoned": 0.34},
        "continual": {
            "learner": "ewc",
            "tasks": {"count": 3, "classes_per_task": 2},
            "rounds_per_task": 2,
            "evaluate_epochs": True,
        },
        "engine": {"kind": "inline"},
    }
    (folder / "scenario.toml").write_text(tomli_w.dumps(tables))
    return fedkd.run(folder / "scenario.toml", out=folder / "run", report=False)


def test_a_stream_writes_its_files(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert {
        "accuracy_matrix.csv",
        "accuracy_matrix.png",
        "accuracy_matrix.pdf",
        "accuracy_matrix.svg",
        "continual_metrics.csv",
    } <= names
    assert not any(name.endswith(".tmp") for name in names)


def test_the_summary_has_statistics_over_honest_clients(finished):
    scenario = load_scenario(finished.folder / "scenario.toml")
    table = json.loads((finished.folder / "summary.json").read_text())["continual"]
    assert (table["tasks"], table["evaluation"]) == (3, "task_incremental")
    rows = finished.metrics()
    honest = sorted(set(range(3)) - set(poisoned(scenario)))
    assert len(honest) == 2

    def matrix(client):
        return [
            [
                next(
                    (
                        r["value"]
                        for r in rows
                        if (r["metric"], r["split"]) == ("accuracy_task_incremental", "global")
                        and (r["round"], r["task"], r["client"]) == (2 * learned, task, client)
                    ),
                    nan,
                )
                for task in range(3)
            ]
            for learned in range(4)
        ]

    matrices = {client: np.array(matrix(client)) for client in honest}
    last = [float(m[3].mean()) for m in matrices.values()]
    assert table["average_accuracy"] == table["average_accuracy_task_incremental"]
    assert table["average_accuracy"] == pytest.approx(
        {"mean": np.mean(last), "std": np.std(last), "min": min(last), "max": max(last), "worst": min(last)}
        | {"n": 2}
    )
    drops = [float(max(m[1, 0], m[2, 0]) - m[3, 0] + m[2, 1] - m[3, 1]) / 2 for m in matrices.values()]
    assert table["forgetting"]["worst"] == pytest.approx(max(drops), abs=1e-12)
    assert table["stored_bytes_per_task"]["mean"] == pytest.approx(table["stored_bytes"]["mean"] / 3)
    assert table["stored_bytes"]["mean"] > 0


def poisoned(scenario):
    from fedkd.plan.client_roles import poisoned_clients

    return poisoned_clients(scenario)


def test_the_two_causes_add_up_to_the_forgetting(finished):
    scenario = load_scenario(finished.folder / "scenario.toml")
    outcome = outcome_of(finished.metrics(), scenario)
    for split in ("local", "global"):
        test = outcome.test(main_protocol(scenario), split)
        for client, metrics in test.metrics.items():
            both = metrics["temporal_forgetting"] + metrics["spatial_forgetting"]
            assert both == pytest.approx(forgetting_first_last(test.clients[client][0]), abs=1e-12)
    drops = [metrics["spatial_forgetting"] for test in outcome.tests[:2] for metrics in test.metrics.values()]
    assert any(drop != 0 for drop in drops)


def test_the_curves_of_a_run_are_complete(finished):
    scenario = load_scenario(finished.folder / "scenario.toml")
    epochs = [json.loads(line) for line in (finished.folder / "epochs.jsonl").read_text().splitlines()]
    outcome = outcome_of(finished.metrics(), scenario, epochs=epochs)
    test = outcome.test("task_incremental", "local")
    curves = []
    for task in range(3):
        own = [e for e in epochs if (e["client"], e["split"], e["task"]) == (1, "local", task)]
        measured = [e["value"] for e in sorted(own, key=lambda e: (e["round"], e["epoch"]))]
        start = test.clients[1][1][0] if task == 0 else test.clients[1][0][task - 1, task]
        curves.append([start, *measured])
        assert len(measured) == 4
    expected = float(np.mean([learning_area(curve) for curve in curves]))
    assert test.metrics[1]["learning_area"] == pytest.approx(expected)
    assert finished.summary["continual"]["learning_area"]["mean"] > 0


def test_protocols_follow_the_head():
    given = "task_incremental"
    assert [evaluation_protocols(scenario_of(head=h)) for h in ("task", "class", "domain")] == [
        (given, "class_incremental"),
        (given, "class_incremental"),
        (given, "domain_incremental"),
    ]
    assert [main_protocol(scenario_of(head=h)) for h in ("task", "class", "domain")] == [
        given,
        "class_incremental",
        "domain_incremental",
    ]


# Early and late ---------------------------------------------------------------------------------------


def test_rounds_to_learn_are_counted_for_first_and_last_clients():
    scenario = scenario_of(tasks=2)
    courses = [[(0, 1, 2), (1, 3, 4)], [(1, 1, 2), (0, 3, 4)]]
    reached = {  # accuracy on each task before and after every round
        0: {0: [0.1, 0.5, 0.8, 0.8, 0.8], 1: [0.1, 0.1, 0.4, 0.95, 1.0]},
        1: {1: [0.1, 0.95, 1.0, 0.9, 0.9], 0: [0.1, 0.1, 0.1, 0.5, 0.9]},
    }
    rows = [
        row(round, client, task, accuracy_name(main_protocol(scenario)), value)
        for client, of_tasks in reached.items()
        for task, values in of_tasks.items()
        for round, value in enumerate(values)
    ]
    rows += [row(round, client, None, "loss", 0.5, "train") for client in (0, 1) for round in (1, 3)]
    figures = stream_outcome(rows, scenario, courses).figures()
    # The first needs 2 rounds for task 0 (0.9 · 0.8 is 0.72) and 1 for task 1, the second 1 and 2.
    assert figures["rounds_to_90"] == {0: 1.5, 1: 1.5}
    assert figures["rounds_to_90_early"] == {0: 2.0, 1: 1.0}
    assert figures["rounds_to_90_late"] == {0: 1.0, 1: 2.0}


def test_clients_in_lockstep_have_no_late_learners():
    figures = recorded().figures()
    assert all(isnan(value) for value in figures["rounds_to_90_late"].values())
