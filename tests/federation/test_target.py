"""TARGET in whole runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stopping import StopInRound

import fedkd
from fedkd.errors import Interrupted, UserError
from fedkd.plan.load import parse_plan, parse_scenario
from fedkd.simulation.scenario_check import check_plan

pytestmark = pytest.mark.usefixtures("no_report")

N, M, PIXELS = 3, 40, 64
CLASSES_MET = (2, 4)
"""When the first and when the second of three tasks ends."""
SMALL = {"samples": M, "synthesis_batch_size": 20, "generator_steps": 12, "student_steps": 2, "noise": 8}
SMALL |= {"generator_width": 4, "generator_lr": 0.01}
TABLES: dict[str, Any] = {
    "name": "target",
    "seed": 7,
    "data": {
        "dataset": "digits",
        "clients": N,
        "partition": {"scheme": "dirichlet", "alpha": 1.0, "samples_per_client": 40},
        "transfer": {"size": 0},
        "test_size": 60,
    },
    "clients": [{"model": "mlp", "args": {"hidden": [16]}}],
    "training": {"lr": 0.01, "batch_size": 20, "local_epochs": 2},
    "fusion": {"strategy": "target", **SMALL},
    "continual": {
        "learner": "naive",
        "head": "class",
        "rounds_per_task": 2,
        "tasks": {"kind": "split", "count": 3, "classes_per_task": 2},
    },
    "engine": {"kind": "inline"},
}


def scenario(**changes: Any):
    return parse_scenario(TABLES | changes)


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """Return a function from changes to the result of a run; the same changes are run once."""
    known: dict[str, Any] = {}

    def run(**changes: Any):
        if repr(changes) not in known:
            known[repr(changes)] = fedkd.run(scenario(**changes), out=tmp_path_factory.mktemp("run") / "run")
        return known[repr(changes)]

    return run


def bytes_of(result) -> bytes:
    return (result.folder / "metrics.jsonl").read_bytes()


def accuracies(result, **wanted: Any) -> dict[tuple, float]:
    """Return all accuracies by what they are of."""
    return {
        (row["round"], row["client"], row["task"], row["split"], row["metric"]): row["value"]
        for row in result.metrics()
        if row["metric"].startswith("accuracy") and all(row[key] == value for key, value in wanted.items())
    }


def test_the_average_model_has_one_backward_transfer(run_once):
    bwt = run_once(clients_per_round=1).summary["continual"]["bwt"]
    assert bwt["min"] == bwt["max"] != 0.0


def test_target_without_rehearsal_equals_federated_averaging(run_once):
    alone = run_once(fusion={"strategy": "target", "strength": 0.0})
    data = TABLES["data"] | {"transfer": {"source": "noise", "size": 10}}
    averaged = run_once(fusion={"strategy": "feddf", "server_epochs": 0}, data=data)
    assert bytes_of(alone) == bytes_of(averaged)
    for name in ("bytes_up", "bytes_down"):
        assert alone.summary["final"][name] == averaged.summary["final"][name]
    flower = accuracies(run_once(fusion={"strategy": "flwr:FedAvg"}), metric="accuracy")
    ours = accuracies(alone, metric="accuracy")
    assert flower.keys() <= ours.keys() and flower
    assert max(abs(ours[key] - value) for key, value in flower.items()) < 1e-9


def test_rehearsal_starts_with_the_second_task_and_keeps_old_classes(run_once):
    alone, rehearsing = run_once(fusion={"strategy": "target", "strength": 0.0}), run_once()
    first = [(r.metrics(), [row for row in r.metrics() if row["round"] <= 2]) for r in (alone, rehearsing)]
    assert first[0][1] == first[1][1] and first[0][0] != first[1][0]
    old = {"metric": "accuracy_class_incremental", "split": "global", "round": 4, "task": 0, "client": None}
    without, with_it = (next(iter(accuracies(result, **old).values())) for result in (alone, rehearsing))
    assert with_it > without + 0.2


def test_samples_and_soft_labels_are_sent_once_per_task(run_once):
    alone, rehearsing = run_once(fusion={"strategy": "target", "strength": 0.0}), run_once()
    made = sum(4 * M * (PIXELS + classes) + 8 * classes for classes in CLASSES_MET)
    final, without = rehearsing.summary["final"], alone.summary["final"]
    assert final["bytes_down"] - without["bytes_down"] == N * made
    assert final["bytes_up"] == without["bytes_up"]


@pytest.mark.parametrize("stop", [2, 3], ids=["when samples have been made", "within a task"])
def test_target_resumes_exactly(stop, run_once, tmp_path):
    with pytest.raises(Interrupted):
        fedkd.run(scenario(), out=tmp_path / "stopped", observers=[StopInRound(stop)])
    assert bytes_of(fedkd.resume(tmp_path / "stopped")) == bytes_of(run_once())


SOME: dict[str, Any] = {
    "clients_per_round": 2,
    "clients": [{"model": "resnet8"}],
    "continual": TABLES["continual"] | {"rounds_per_task": 1},
}
"""Clients that are absent now and then, with running statistics to be matched."""


def test_absent_clients_rehearse_too(run_once):
    assert np.isfinite([row["value"] for row in run_once(**SOME).metrics()]).all()


@pytest.mark.slow
def test_target_on_actors_equals_one_process(run_once, ray_session, tmp_path):
    import ray

    address = ray.get_runtime_context().gcs_address
    on_ray = fedkd.run(
        scenario(**SOME, engine={"kind": "ray", "actors": 2, "address": address}), out=tmp_path / "ray"
    )
    assert bytes_of(on_ray) == bytes_of(run_once(**SOME))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"continual": None, "rounds": 2}, r"'target' needs a stream of tasks"),
        ({"continual": {"head": "task"}}, r"continual\.head: must be 'class' with 'target'"),
        (
            {"continual": {"tasks": TABLES["continual"]["tasks"] | {"order": "shuffled"}}},
            r"continual\.tasks: 'target' needs all clients at the same task",
        ),
        (
            {"continual": {"tasks": TABLES["continual"]["tasks"] | {"pace": "poisson"}}},
            r"continual\.tasks: 'target' needs all clients at the same task",
        ),
        ({"clients": [{"model": "mlp"}, {"model": "lenet"}]}, r"clients: 'target' averages parameters"),
        ({"continual": {"learner": "packnet"}}, r"'target' averages weights, and 'packnet' gives each task"),
        (
            {"continual": {"learner": "joint"}},
            r"'target' distils transfer samples in local training, but 'joint'",
        ),
        ({"fusion": {"samples": 10**9}}, r"fusion\.samples: 1,000,000,000 samples on each of 3 clients take"),
        ({"data": {"normalise": False}}, r"data\.normalise: must be true with 'target'"),
    ],
)
def test_unsupported_targets_are_refused_by_the_check(changes, message):
    tables = dict(TABLES)
    for key, value in changes.items():
        tables[key] = TABLES[key] | value if isinstance(value, dict) else value
    tables = {key: value for key, value in tables.items() if value is not None}
    with pytest.raises(UserError, match=message):
        list(check_plan(parse_plan(tables)))
