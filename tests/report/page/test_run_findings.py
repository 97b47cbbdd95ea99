"""The sentences at the top of a run's page, against numbers computed by hand."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from fedkd.continual.metrics.outcome import ProtocolOutcome, StreamOutcome
from fedkd.plan import poisoned_clients
from fedkd.report.page.record import RunRecord
from fedkd.report.page.run_findings import run_findings
from fedkd.report.page.write import write_report
from fedkd.scenario import read_scenario

SENT = ({"round": 1, "phase": "train", "seconds": 1.5, "bytes_up": 6_000_000, "bytes_down": 12_000_000},)
DATA = {"dataset": "digits", "clients": 1}
DONE = {"final": {}, "seconds": 41.0}


def run_of(
    *,
    round: int = 2,
    clients: int = 4,
    before: dict[str, dict[int, float]] | None = None,
    timings=SENT,
    summary=DONE,
    changes=None,
    **after: dict[int, float],
) -> RunRecord:
    """Return a run whose clients have these accuracies by split; those with one `before` too had a fusion."""
    tables = {
        "rounds": round,
        "data": {"dataset": "digits", "clients": clients},
        "clients": [{"model": "mlp"}],
    }
    scenario = read_scenario(tables | (changes or {}), file="made.toml", folder=Path())
    rows = []

    def add(split: str, metric: str, values: dict[int, float]) -> None:
        row = {"round": round, "task": None, "split": split, "metric": metric}
        rows.extend({**row, "client": client, "value": value} for client, value in values.items())
        rows.append({**row, "client": None, "value": fmean(values.values())})

    for split, values in after.items():
        earlier = (before or {}).get(split, {})
        add(split, "accuracy", values)
        add(split, "accuracy_before_fusion", values | earlier)
        if earlier:
            add(split, "fusion_gain", {client: values[client] - earlier[client] for client in earlier})
    return RunRecord(Path(), scenario, "", rows, timings, (), summary, None, ("mlp",) * clients, (), ())


def test_fusion_that_helped_most_clients():
    before = {"global": {0: 0.30, 1: 0.32, 2: 0.31, 3: 0.31}, "local": {0: 0.8, 1: 0.8, 2: 0.8, 3: 0.8}}
    after = {0: 0.50, 1: 0.45, 2: 0.493, 3: 0.289}  # mean 43.3 %
    assert run_findings(
        run_of(before=before, **{"global": after, "local": {0: 0.7, 1: 0.8, 2: 0.8, 3: 0.8}})
    ) == [
        "Fusion raised the mean global test accuracy by 12.3 points in round 2 (31.0 % before, 43.3 % after,"
        " 4 clients); it lowered the local one by 2.5 points.",
        "3 of 4 clients gained in global accuracy; client 3 lost most (−2.1 points).",
        "In 2 rounds, a client sent 1.5 MB and received 3.0 MB on average; the run took 41 s.",
    ]


def test_fusion_that_hurt():
    before = {"global": {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.6}}
    effect, clients, _ = run_findings(run_of(before=before, **{"global": {0: 0.4, 1: 0.5, 2: 0.6, 3: 0.4}}))
    assert effect == (
        "Fusion lowered the mean global test accuracy by 12.5 points in round 2 (60.0 % before, 47.5 % after,"
        " 4 clients)."
    )
    assert clients == "No client gained in global accuracy; client 3 lost most (−20.0 points)."


def test_fusion_that_acts_in_the_next_training_alone():
    same = {0: 0.5, 1: 0.7, 2: 0.5, 3: 0.7}
    effect, clients, _ = run_findings(
        run_of(before={"global": same, "local": same}, **{"global": same, "local": same})
    )
    assert effect == "The mean global test accuracy is 60.0 % before and after fusion in round 2 (4 clients)."
    assert clients == (
        "Fusion changed no measured accuracy at once; effects can only show after the next local training."
    )


def test_fusion_that_moves_accuracies_up_and_down_alike():
    before, same = {0: 0.5, 1: 0.7}, {0: 0.5, 1: 0.5}
    run = run_of(
        before={"global": before, "local": same}, **{"global": {0: 0.7, 1: 0.5}, "local": same}, clients=2
    )
    assert run_findings(run)[:2] == [
        "Fusion left the mean global test accuracy unchanged in round 2 (60.0 %, 2 clients); the local one is"
        " unchanged.",
        "1 of 2 clients gained in global accuracy; client 1 lost most (−20.0 points).",
    ]


def test_fusion_of_another_model_than_the_evaluated_one():
    same = {0: 0.5, 1: 0.7}
    run = run_of(before={"global": same}, **{"global": same}, clients=2)
    series = {"personal": (same, same), "shared": ({0: 0.2, 1: 0.4}, {0: 0.45, 1: 0.45})}
    for model, (before, after) in series.items():
        for moment, values in (("_before_fusion", before), ("", after)):
            row = {"round": 2, "task": None, "split": "global", "metric": f"accuracy{moment}_{model}"}
            run.rows.extend({**row, "client": c, "value": v} for c, v in (*values.items(), (None, 0.5)))
    assert run_findings(run)[:2] == [
        "Fusion raised the mean global test accuracy of the shared model by 15.0 points in round 2"
        " (30.0 % before, 45.0 % after, 2 clients).",
        "Fusion leaves the evaluated model as it is until the next local training: the mean global test"
        " accuracy is 60.0 %.",
    ]


def test_clients_that_gained_or_stayed():
    before = {"global": {0: 0.5, 1: 0.5, 2: 0.5, 3: 0.5}}
    _, some, _ = run_findings(run_of(before=before, **{"global": {0: 0.5, 1: 0.6, 2: 0.8, 3: 0.6}}))
    assert some == (
        "3 of 4 clients gained in global accuracy, and none lost; client 2 gained most (+30.0 points)."
    )
    _, every, _ = run_findings(run_of(before=before, **{"global": {0: 0.6, 1: 0.6, 2: 0.8, 3: 0.6}}))
    assert every == "All 4 clients gained in global accuracy; client 2 gained most (+30.0 points)."


def test_only_clients_that_took_part_are_compared():
    run = run_of(before={"global": {1: 0.5, 3: 0.6}}, **{"global": {0: 0.1, 1: 0.6, 2: 0.2, 3: 0.6}})
    assert run_findings(run)[:2] == [
        "Fusion raised the mean global test accuracy by 5.0 points in round 2 (55.0 % before, 60.0 % after,"
        " the 2 of 4 clients that took part).",
        "1 of 2 clients gained in global accuracy, and none lost; client 1 gained most (+10.0 points).",
    ]


def test_poisoned_clients_are_left_out():
    attack = {"faults": {"poisoned": 0.25}}
    (poisoned,) = poisoned_clients(run_of(changes=attack).scenario)
    first, *rest = (client for client in range(4) if client != poisoned)
    before = {first: 0.5, poisoned: 0.9} | dict.fromkeys(rest, 0.5)
    after = {first: 0.56, poisoned: 0.1} | dict.fromkeys(rest, 0.5)
    effect, clients, _ = run_findings(run_of(before={"global": before}, **{"global": after}, changes=attack))
    assert "by 2.0 points in round 2 (50.0 % before, 52.0 % after, 3 honest clients)" in effect
    assert clients.startswith("1 of 3 clients gained")


def test_local_accuracy_stands_in_for_a_missing_global_one():
    found = run_findings(run_of(before={"local": {0: 0.5}}, local={0: 0.6}, clients=1))
    assert found == [
        "Fusion raised the local test accuracy by 10.0 points in round 2 (50.0 % before, 60.0 % after,"
        " 1 client).",
        "In 2 rounds, a client sent 6.0 MB and received 12.0 MB on average; the run took 41 s.",
    ]


def test_a_run_without_fusion():
    alone = {"fusion": {"strategy": "local"}}
    nothing = ({"round": 1, "phase": "train", "seconds": 1.5},)
    run = run_of(**{"global": {0: 0.4, 1: 0.5, 2: 0.6, 3: 0.5}}, changes=alone, timings=nothing)
    assert run_findings(run) == [
        "Without fusion (strategy local), the mean global test accuracy is 50.0 % in round 2 (4 clients).",
        "Clients range from 40.0 % (client 0) to 60.0 % (client 2).",
        "Clients sent nothing; the run took 41 s.",
    ]
    bound = run_of(**{"global": {0: 0.9, 1: 0.9}}, clients=2, changes={"fusion": {"strategy": "centralized"}})
    assert run_findings(bound) == [
        "With one model on the samples of all clients (strategy centralized), the mean global test accuracy"
        " is 90.0 % in round 2 (2 clients).",
        "All samples are in one place; the run took 41 s.",
    ]


def test_a_strategy_without_a_measurement_before_fusion():
    run = run_of(**{"global": {0: 0.5}}, clients=1, changes={"fusion": {"strategy": "flwr:FedAvg"}})
    assert run_findings(run)[0] == (
        "Without a measurement before fusion (strategy flwr:FedAvg), the global test accuracy is 50.0 % in"
        " round 2 (1 client)."
    )


def test_validation_samples_are_named():
    run = run_of(
        before={"local": {0: 0.5}}, local={0: 0.6}, clients=1, changes={"data": DATA | {"validation": 0.2}}
    )
    assert run_findings(run)[0].startswith("Fusion raised the local validation accuracy by 10.0 points")


def test_nothing_measured_gives_no_sentence():
    assert run_findings(run_of()) == []


@pytest.mark.parametrize(
    ("changes", "summary", "told"),
    [
        (
            {},
            None,
            "In 2 rounds, a client sent 1.5 MB and received 3.0 MB on average; the run took 1.5 s so far.",
        ),
        (
            {"topology": {"graph": "ring"}},
            DONE,
            "In 2 rounds, a client sent 1.5 MB to its neighbours on average; the run took 41 s.",
        ),
        (
            {"clock": {}},
            {"final": {"virtual_seconds": 185.0}, "seconds": 41.0},
            "In 2 rounds, a client sent 1.5 MB and received 3.0 MB on average; the run took 41 s,"
            " 3 min 05 s of simulated time.",
        ),
    ],
)
def test_the_cost(changes, summary, told):
    run = run_of(**{"global": {0: 0.5, 1: 0.5, 2: 0.5, 3: 0.5}}, changes=changes, summary=summary)
    assert run_findings(run)[-1] == told


def test_a_stream_has_its_average_accuracy_and_backward_transfer():
    R = np.eye(2)
    metrics = {
        0: {"average_accuracy": 0.7, "bwt": -0.06},
        1: {"average_accuracy": 0.8, "bwt": -0.02},
        2: {"average_accuracy": float("nan"), "bwt": float("nan")},
    }
    tests = [
        ProtocolOutcome("task_incremental", split, R, R[0], {}, metrics) for split in ("global", "local")
    ]
    outcome = StreamOutcome(2, "task_incremental", tests, {}, frozenset({0, 1, 2}), (), in_step=True)
    stream = {"learner": "naive", "tasks": {"kind": "split", "count": 2}, "rounds_per_task": 1}
    values = {0: 0.6, 1: 0.6, 2: 0.6}
    run = run_of(
        before={"global": values}, **{"global": values | {0: 0.63}}, clients=3, changes={"continual": stream}
    )
    assert run_findings(run, outcome)[:2] == [
        "Fusion raised the mean global test accuracy over the tasks so far by 1.0 points in round 2"
        " (60.0 % before, 61.0 % after, 3 clients).",
        "After 2 tasks, the average accuracy is 75.0 % and backward transfer is −4.0 points"
        " (task-incremental, 2 clients).",
    ]


def test_the_page_begins_with_the_sentences(make_run):
    text = write_report([make_run()]).read_text()
    first = text.index("<li>Fusion ")
    assert text.index("<h1>") < first < text.index('<dl class="facts">') < text.index("<h2>Accuracy</h2>")
    assert "a client sent 750 B and received 1.5 kB on average; the run took 5.2 s." in text
