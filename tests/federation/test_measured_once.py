"""Clients with a shared model are evaluated once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import tomli_w

import fedkd
from fedkd.clients.evaluation import task_tests
from fedkd.clients.evaluation.evaluator import Evaluator
from fedkd.clients.evaluation.task_tests import TaskTests
from fedkd.clients.shared_network import Measured
from fedkd.plan.load import load_scenario

pytestmark = pytest.mark.usefixtures("no_report")

CLIENTS, ROUNDS, TASKS = 4, 4, 2


@contextmanager
def counted(patch: pytest.MonkeyPatch, owner: type, name: str) -> Iterator[list[Any]]:
    """Take down the calls of a method."""
    calls: list[Any] = []
    method = getattr(owner, name)

    def noted(self: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        return method(self, *arguments)

    with patch.context() as patched:
        patched.setattr(owner, name, noted)
        yield calls


@pytest.mark.parametrize(
    ("learner", "shared"),
    [("naive", True), ("er", True), ("icarl", False)],
)
def test_shared_evaluations_equal_individual_ones(learner, shared, digits_scenario, tmp_path, monkeypatch):
    del digits_scenario["rounds"]
    path = tmp_path / "scenario.toml"
    stream = {"learner": learner, "rounds_per_task": 2, "tasks": {"kind": "split", "count": TASKS}}
    tables = {"fusion": {"strategy": "flwr:FedAvg"}, "continual": stream}
    path.write_text(tomli_w.dumps(digits_scenario | tables))

    def run(name: str) -> tuple[bytes, int, int]:
        with (
            counted(monkeypatch, TaskTests, "_shares") as of_tasks,
            counted(monkeypatch, Evaluator, "evaluate") as scores,
        ):
            fedkd.run(load_scenario(path), out=tmp_path / name)
        return (tmp_path / name / "metrics.jsonl").read_bytes(), len(of_tasks), len(scores)

    together, tests, scores = run("together")
    monkeypatch.setattr(Measured, "once", lambda self, round, what, measure: measure())
    alone, tests_alone, scores_alone = run("alone")
    assert together == alone
    saved = (CLIENTS - 1) * shared
    assert scores_alone - scores == saved * (ROUNDS + 1)
    assert tests_alone - tests == saved * (ROUNDS + 1) * TASKS


@pytest.mark.parametrize("learner", ["naive", "icarl", "supsup"])
def test_the_current_task_is_predicted_once_per_evaluation(learner, digits_scenario, tmp_path, monkeypatch):
    del digits_scenario["rounds"]
    stream = {"learner": learner, "rounds_per_task": 2, "tasks": {"kind": "split", "count": TASKS}}
    data = digits_scenario["data"] | {"clients": 2, "partition": {"scheme": "iid", "samples_per_client": 30}}
    path = tmp_path / "scenario.toml"
    path.write_text(tomli_w.dumps(digits_scenario | {"data": data, "continual": stream}))

    def run(name: str) -> tuple[bytes, int]:
        predictions: list[int] = []
        predict = task_tests.predict_in_batches

        def noted(model: Any, outputs: Any, x: Any) -> Any:
            predictions.append(len(x))
            return predict(model, outputs, x)

        with monkeypatch.context() as patched:
            patched.setattr(task_tests, "predict_in_batches", noted)
            fedkd.run(load_scenario(path), out=tmp_path / name)
        return (tmp_path / name / "metrics.jsonl").read_bytes(), len(predictions)

    once, few = run("once")
    monkeypatch.setattr(TaskTests, "shared_predictions", lambda self: nullcontext())
    anew, many = run("anew")
    assert once == anew
    # Two clients, two splits; two moments of every round, and one before the first.
    assert many - few == 2 * 2 * (2 * ROUNDS + 1)
