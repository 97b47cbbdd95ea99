"""Failed clients end the run, are skipped or are retried."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import tomli_w
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid
from stopping import StopInRound

import fedkd
from fedkd.clients.client import Client
from fedkd.clients.evaluation.evaluator import Evaluator
from fedkd.errors import Interrupted, RunFailed, TrainingDiverged, UserError
from fedkd.federation.apps.server_app import server_app
from fedkd.plan.load import load_plan
from fedkd.plan.schedule import Schedule
from fedkd.tracking.events import RunObserver

pytestmark = pytest.mark.usefixtures("no_report")

CLIENT, ROUND = 2, 2


@pytest.fixture
def tables(digits_scenario) -> dict[str, Any]:
    return digits_scenario | {"rounds": 4}


def write(tables: dict[str, Any], folder: Path, **faults: Any) -> Path:
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps(tables | {"faults": faults}))
    return path


def run(tables: dict[str, Any], folder: Path, observers=(), **faults: Any) -> list[dict]:
    folder.mkdir(exist_ok=True)
    return fedkd.run(write(tables, folder, **faults), out=folder / "run", observers=observers).metrics()


COUNTS = ("failed", "timed_out", "refused")


def without_failures(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["metric"] not in COUNTS]


def failures(rows: list[dict]) -> list[tuple]:
    names = ("round", "client", "split", "metric", "value")
    return [tuple(row[n] for n in names) for row in rows if row["metric"] in COUNTS]


def break_training(monkeypatch, error: Exception, times: int = 10**6) -> list[int]:
    """Have a client raise at the end of a training, when its model is another one already."""
    train, seen = Client.train, []

    def broken(self, round, **options):
        loss = yield from train(self, round, **options)
        self.memory["half"] = self.weights().popitem()[1]
        if (self.index, round) == (CLIENT, ROUND) and len(seen) < times:
            seen.append(round)
            raise error
        return loss

    monkeypatch.setattr(Client, "train", broken)
    return seen


@pytest.mark.parametrize(
    ("error", "faults", "count"),
    [
        (OSError("the disk is gone"), {"on_client_error": "skip"}, "failed"),
        (TrainingDiverged("the loss is nan"), {"on_bad_upload": "drop"}, "refused"),
    ],
)
@pytest.mark.parametrize(
    "strategy", [{"strategy": "knfu"}, {"strategy": "scarlet"}, {"strategy": "flwr:FedAvg"}]
)
def test_a_client_that_is_skipped_counts_as_absent(
    strategy, error, faults, count, tables, tmp_path, monkeypatch
):
    tables |= {"fusion": strategy, "evaluate_every": 2}  # guidance of round 1 goes along with the message
    with monkeypatch.context() as patched:
        present = Schedule.participants
        patched.setattr(
            Schedule,
            "participants",
            lambda self, round: tuple(
                client for client in present(self, round) if (client, round) != (CLIENT, ROUND)
            ),
        )
        absent = run(tables, tmp_path / "absent")
    break_training(monkeypatch, error)
    skipped = run(tables, tmp_path / "skipped", **faults)
    assert failures(skipped) == [(ROUND, CLIENT, "train", count, 1), (ROUND, None, "train", count, 1)]
    assert without_failures(skipped) == absent


def test_a_retried_client_starts_from_its_previous_state(tables, tmp_path, monkeypatch):
    unbroken = run(tables, tmp_path / "unbroken")
    seen = break_training(monkeypatch, MemoryError("no room"), times=2)
    told: list[str] = []

    class Listener(RunObserver):
        def message(self, text: str) -> None:
            told.append(text)

    retried = run(tables, tmp_path / "retried", [Listener()], on_client_error="retry", retries=2)
    assert seen == [ROUND, ROUND]
    assert failures(retried) == [(ROUND, CLIENT, "train", "failed", 2), (ROUND, None, "train", "failed", 2)]
    assert without_failures(retried) == unbroken
    assert told.count("client 2, round 2: MemoryError: no room; asking once more") == 2


def test_repeated_failures_end_the_run(tables, tmp_path, monkeypatch):
    seen = break_training(monkeypatch, OSError("gone"))
    with pytest.raises(RunFailed, match=r"^client 2, round 2: OSError: gone") as caught:
        run(tables, tmp_path / "run", on_client_error="retry", retries=3)
    assert caught.value.exit_status == 3 and len(seen) == 4


def test_a_failed_evaluation_affects_only_its_own_metrics(tables, tmp_path, monkeypatch):
    unbroken = run(tables, tmp_path / "unbroken")
    evaluate = Evaluator.evaluate_after_fusion

    def broken(self, split, round):
        if (self._client.index, round) == (CLIENT, ROUND):
            raise OSError("gone")
        return evaluate(self, split, round)

    monkeypatch.setattr(Evaluator, "evaluate_after_fusion", broken)
    rows = run(tables, tmp_path / "broken", on_client_error="skip")
    assert failures(rows) == [(ROUND, CLIENT, "local", "failed", 1), (ROUND, None, "local", "failed", 1)]
    kept = [row for row in unbroken if row["client"] is not None and row["metric"] == "loss"]
    missed = [
        row for row in kept if (row["client"], row["round"]) == (CLIENT, ROUND) and row["split"] != "train"
    ]
    assert [row for row in rows if row["client"] is not None and row["metric"] == "loss"] == [
        row for row in kept if row not in missed
    ], "it has had its guidance with the next message"


def test_a_run_with_a_skipped_client_resumes_byte_for_byte(tables, tmp_path, monkeypatch):
    break_training(monkeypatch, OSError("gone"))
    whole = run(tables, tmp_path / "whole", on_client_error="skip")
    with pytest.raises(Interrupted):
        run(tables, tmp_path / "cut", [StopInRound(ROUND)], on_client_error="skip")
    assert fedkd.resume(tmp_path / "cut" / "run").metrics() == whole


def test_a_run_ended_by_a_client_resumes_without_it(tables, tmp_path, monkeypatch):
    break_training(monkeypatch, OSError("gone"))
    whole = run(tables, tmp_path / "whole", on_client_error="skip")
    with pytest.raises(RunFailed):
        run(tables, tmp_path / "ended")
    scenario = tmp_path / "ended" / "run" / "scenario.toml"
    scenario.write_text(scenario.read_text().replace('on_client_error = "fail"', 'on_client_error = "skip"'))
    assert fedkd.resume(scenario.parent).metrics() == whole


def test_too_few_replies_end_the_run(tables, tmp_path, monkeypatch):
    break_training(monkeypatch, OSError("gone"))
    with pytest.raises(
        RunFailed, match=r"^round 2: 3 of 4 clients .* faults.min_replies = 4; client 2: OSError: g"
    ):
        run(tables, tmp_path / "run", on_client_error="skip", min_replies=4)


def break_upload(monkeypatch) -> None:
    """Have a client send what no server expects, once it has trained."""
    upload = Client.upload

    def broken(self, round, request=None):
        sent = upload(self, round, request)
        if (self.index, round) == (CLIENT, ROUND):
            sent = {name: values[..., None] for name, values in sent.items()}
        return sent

    monkeypatch.setattr(Client, "upload", broken)


@pytest.mark.parametrize("strategy", ["knfu", "flwr:FedAvg"])
def test_a_run_with_a_dropped_upload_resumes_byte_for_byte(strategy, tables, tmp_path, monkeypatch):
    tables |= {"fusion": {"strategy": strategy}}
    break_upload(monkeypatch)
    with pytest.raises(
        RunFailed, match=rf"^client {CLIENT}, round {ROUND}: reply refused: array \S+ has shape"
    ):
        run(tables, tmp_path / "failed")
    whole = run(tables, tmp_path / "whole", on_bad_upload="drop")
    assert failures(whole) == [(ROUND, CLIENT, "train", "refused", 1), (ROUND, None, "train", "refused", 1)]
    with pytest.raises(Interrupted):
        run(tables, tmp_path / "cut", [StopInRound(ROUND)], on_bad_upload="drop")
    assert fedkd.resume(tmp_path / "cut" / "run").metrics() == whole
    scenario = tmp_path / "failed" / "run" / "scenario.toml"
    scenario.write_text(scenario.read_text().replace('on_bad_upload = "fail"', 'on_bad_upload = "drop"'))
    assert fedkd.resume(scenario.parent).metrics() == whole, "of a run that ended with it, too"


@pytest.mark.parametrize("measure", ["skip", "retry"])
def test_a_nan_loss_ends_the_run(measure, tables, tmp_path, monkeypatch):
    seen = break_training(monkeypatch, TrainingDiverged("the loss is nan"))
    with pytest.raises(RunFailed, match=r"^client 2, round 2: the loss is nan "):
        run(tables, tmp_path / "run", on_client_error=measure)
    assert len(seen) == 1


def test_the_end_of_a_task_cannot_be_skipped(tables, tmp_path, monkeypatch):
    def end_task(self):
        raise OSError("gone")

    monkeypatch.setattr(Client, "end_task", end_task)
    tables |= {"continual": {"learner": "naive", "tasks": {"count": 2}, "rounds_per_task": 1}, "rounds": 2}
    tables["data"] = tables["data"] | {"partition": {"scheme": "iid", "samples_per_client": 20}}
    tables["data"]["transfer"] = {"source": "holdout", "size": 20}
    with pytest.raises(RunFailed, match=r"^client 0, round 1: OSError: gone"):
        run(tables, tmp_path / "run", on_client_error="skip")


@pytest.mark.parametrize(
    ("faults", "key"),
    [
        ({"timeout": 5.0}, "faults.timeout"),
        ({"min_replies": 5, "on_client_error": "skip"}, "faults.min_replies"),
    ],
)
def test_impossible_settings_are_refused(faults, key, tables, tmp_path):
    with pytest.raises(UserError) as caught:
        load_plan(write(tables, tmp_path, **faults))
    assert caught.value.key == key


# On Ray ---------------------------------------------------------------------------------------------------

TROUBLE = """
import os
import time
from pathlib import Path

from torch import nn


class Trouble(nn.Sequential):
    '''A linear classifier that breaks the process it trains in, or stops it for good, at one moment.'''

    def __init__(self, input_shape, classes, how, marker):
        channels, height, width = input_shape
        super().__init__(nn.Flatten(), nn.Linear(channels * height * width, classes))
        self.how, self.marker, self.steps = how, Path(marker), 0

    def forward(self, x):
        self.steps += self.training
        if self.how == "diverge":
            return super().forward(x) * (float("nan") if self.training else 1.0)
        if self.steps == 7 and not self.marker.exists():
            self.marker.touch()
            os._exit(3) if self.how == "die" else time.sleep(10**6)
        return super().forward(x)
"""


@pytest.fixture
def troubled(tables, tmp_path) -> Iterator[dict[str, Any]]:
    """Four clients that train on private samples alone, client 2 with a `Trouble` of its own."""
    (tmp_path / "trouble.py").write_text(TROUBLE)
    marker = tmp_path / "marker"
    args = {"how": "die", "marker": str(marker)}
    tables["clients"] = [{"model": "mlp", "share": 3}, {"model": "trouble:Trouble", "args": args}]
    tables["fusion"] = {"strategy": "knfu", "distill_epochs": 0}
    return tables | {"plugin_path": [str(tmp_path)]}


def on_ray(tables: dict[str, Any]) -> dict[str, Any]:
    # One actor: all other clients live in the process that breaks.
    return tables | {"engine": {"kind": "ray", "actors": 1, "cpus_per_actor": 0.1}}


@pytest.mark.alone
def test_a_dead_process_keeps_its_other_clients_states(troubled, tmp_path, monkeypatch, ray_session):
    (tmp_path / "marker").touch()
    unbroken = run(troubled, tmp_path / "unbroken")
    (tmp_path / "marker").unlink()
    rows = run(on_ray(troubled), tmp_path / "broken", on_client_error="retry")
    [(_, client, *rest), (_, everyone, *_)] = failures(rows)
    assert (client, rest, everyone) == (CLIENT, ["train", "failed", 1], None)
    assert without_failures(rows) == unbroken


@pytest.mark.alone
def test_a_diverged_client_is_dropped_on_actors_too(troubled, tmp_path, ray_session):
    troubled["clients"][1]["args"]["how"] = "diverge"
    inline = run(troubled, tmp_path / "inline", on_bad_upload="drop")
    assert [row[:2] for row in failures(inline) if row[1] is not None] == [(r, CLIENT) for r in (1, 2, 3, 4)]
    assert run(on_ray(troubled), tmp_path / "ray", on_bad_upload="drop") == inline


@pytest.mark.slow
def test_a_client_without_a_reply_is_skipped(troubled, tmp_path, ray_session):
    troubled["clients"][1]["args"]["how"] = "hang"
    rows = run(on_ray(troubled), tmp_path / "run", on_client_error="skip", timeout=20.0)
    [(round, client, *rest), _] = failures(rows)
    assert (client, rest) == (CLIENT, ["train", "timed_out", 1])
    trained = [
        row["round"]
        for row in rows
        if (row["client"], row["split"]) == (CLIENT, "train") and row["metric"] == "loss"
    ]
    assert trained == [r for r in (1, 2, 3, 4) if r != round]
    everyone = [row["client"] for row in rows if row["metric"] == "accuracy" and row["split"] == "local"]
    assert everyone == [0, 1, 2, 3, None] * 4, "in the round itself, too: it is evaluated as it was before"
    assert json.loads((tmp_path / "run" / "run" / "summary.json").read_text())["status"] == "done"


@pytest.mark.slow
def test_a_client_without_a_reply_ends_the_run(troubled, tmp_path, ray_session):
    troubled["clients"][1]["args"]["how"] = "hang"
    with pytest.raises(
        RunFailed, match=r"^client 2, round \d: gave no answer within 20 s \(faults.timeout\)"
    ):
        run(on_ray(troubled), tmp_path / "run", timeout=20.0)


def test_flower_runtimes_refuse_time_limits(tables, tmp_path):
    path = write(tables | {"engine": {"kind": "ray"}}, tmp_path, timeout=5)
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"scenario": str(path)}
    )
    with pytest.raises(UserError, match=r"faults\.timeout: must be left out on Flower's runtimes"):
        server_app(grid=cast(Grid, None), context=context)  # nothing has been asked of the grid yet
    assert list(tmp_path.iterdir()) == [path]
