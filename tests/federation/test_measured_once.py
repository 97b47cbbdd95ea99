"""Where clients of a process share a model, what they would all measure alike is measured once a round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tomli_w

import fedkd
from fedkd.clients.stream_client import StreamClient
from fedkd.clients.task_tests import TaskTests
from fedkd.clients.torch_client import Measured
from fedkd.plan.load import load_scenario

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
def test_and_the_figures_are_those_of_everyone_for_themselves(
    learner, shared, digits_scenario, tmp_path, monkeypatch
):
    del digits_scenario["rounds"]
    path = tmp_path / "scenario.toml"
    stream = {"learner": learner, "rounds_per_task": 2, "tasks": {"kind": "split", "count": TASKS}}
    tables = {"fusion": {"strategy": "flwr:FedAvg"}, "continual": stream}
    path.write_text(tomli_w.dumps(digits_scenario | tables))

    def run(name: str) -> tuple[bytes, int, int]:
        with (
            counted(monkeypatch, TaskTests, "_shares") as of_tasks,
            counted(monkeypatch, StreamClient, "evaluate") as scores,
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
