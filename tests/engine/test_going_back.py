"""A run that loses actors returns to its last checkpoint."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tomli_w
from flwr.app import Message
from stopping import StopInRound

import fedkd
from fedkd.engine import clients as engine_clients
from fedkd.engine.inline import InlineGrid
from fedkd.errors import ActorsLost, Interrupted, RunFailed
from fedkd.federation.messages import records as msg
from fedkd.plan.load import load_scenario
from fedkd.tracking.events import RunObserver
from fedkd.tracking.live import LiveProgress
from fedkd.tracking.progress import PlainProgress

pytestmark = pytest.mark.usefixtures("read_once", "no_report")

FILES = ("metrics.jsonl", "epochs.jsonl", "warnings.jsonl")


class Losing(InlineGrid):
    """Loses a node just before some messages are handled, after others of the same phase have been."""

    at: ClassVar[list[tuple[str, int]]] = []
    """Type of the message and round, one after the other."""

    def _execute(self, messages: list[Message]) -> Iterator[Message]:
        for number, reply in enumerate(super()._execute(messages)):
            config = messages[0].content.config_records.get(msg.CONFIG, {})
            now = (messages[0].metadata.message_type, int(config.get(msg.SERVER_ROUND, -1)))
            if number == 1 and self.at and now == self.at[0]:
                del self.at[0]
                raise ActorsLost("node 10.0.0.7 was lost")
            yield reply


class Diary(RunObserver):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def run_started(self, scenario, folder, resumed_from) -> None:
        self.events.append(("started", resumed_from))

    def went_back(self, scenario, folder, done) -> None:
        self.events.append(("back", done))

    def round_finished(self, report) -> None:
        self.events.append(report.round)

    def message(self, text) -> None:
        if "restarting from" in text:
            self.events.append(text)


@pytest.fixture
def losing(monkeypatch):
    """Return a function that has the inline engine lose a node at these messages."""

    def losing(*at: tuple[str, int]) -> None:
        monkeypatch.setattr(Losing, "at", list(at))
        monkeypatch.setattr(engine_clients, "InlineGrid", Losing)

    return losing


def scenario(digits_scenario, folder: Path, **changes: Any):
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps(digits_scenario | {"rounds": 5, "checkpoint_every": 2} | changes))
    return load_scenario(path)


def written(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


STREAM = {
    "learner": "naive",
    "rounds_per_task": 2,
    "evaluate_epochs": True,
    "tasks": {"kind": "split", "count": 2, "classes_per_task": 3},
}


def test_repeated_rounds_give_the_same_bytes(digits_scenario, tmp_path, losing):
    plan = scenario(digits_scenario, tmp_path)
    unbroken = written(fedkd.run(plan, out=tmp_path / "unbroken").folder)
    diary = Diary()
    losing((msg.TRAIN, 2), (msg.EVALUATE, 3), (msg.TRAIN, 5))
    result = fedkd.run(plan, out=tmp_path / "run", observers=[diary])
    assert written(result.folder) == unbroken
    lost = "node 10.0.0.7 was lost; restarting from "
    assert diary.events == [
        *(("started", 0), 1),
        *(f"{lost}its beginning (1 of 3)", ("back", 0), 1, 2),
        *(f"{lost}the checkpoint of round 2 (1 of 3)", ("back", 2), 3, 4),
        *(f"{lost}the checkpoint of round 4 (1 of 3)", ("back", 4), 5),
    ]


def test_repeated_rounds_of_a_stream_give_the_same_bytes_and_output(digits_scenario, tmp_path, losing):
    changes = {"continual": STREAM, "clients": [{"model": "mlp", "args": {"hidden": [8]}}]}
    digits_scenario["data"] = digits_scenario["data"] | {
        "partition": {"scheme": "iid", "samples_per_client": 40},
        "transfer": {"size": 20},
        "test_size": 40,
    }
    plan = scenario(digits_scenario, tmp_path, rounds=4, checkpoint_every=3, **changes)
    unbroken = written(fedkd.run(plan, out=tmp_path / "unbroken").folder)
    assert len(unbroken["epochs.jsonl"]) > 0
    plain, live = PlainProgress(io.StringIO()), LiveProgress()
    losing((msg.END_TASK, 2), (msg.EVALUATE, 4))
    result = fedkd.run(plan, out=tmp_path / "run", observers=[plain, live])
    assert written(result.folder) == unbroken
    assert [report.round for report in live._reports] == [1, 2, 3, 4]
    for shown in (plain, live):
        assert list(shown._matrix.rows()) == [0, 1]


def test_a_run_without_progress_ends_and_can_be_resumed(digits_scenario, tmp_path, losing):
    plan = scenario(digits_scenario, tmp_path, engine={"kind": "inline", "restarts": 2})
    unbroken = written(fedkd.run(plan, out=tmp_path / "unbroken").folder)
    losing(*[(msg.TRAIN, 3)] * 3)
    out = tmp_path / "run"
    with pytest.raises(RunFailed) as caught:
        fedkd.run(plan, out=out)
    assert str(caught.value) == (
        "node 10.0.0.7 was lost; the run has gone back to the checkpoint of round 2 2 times"
        f" (engine.restarts); the last checkpoint is saved; continue with: fedkd resume {out}"
    )
    assert written(fedkd.resume(out).folder) == unbroken


def test_a_stopping_run_is_not_rolled_back(digits_scenario, tmp_path, losing):
    losing((msg.TRAIN, 3))
    diary, stop = Diary(), StopInRound(3)
    with pytest.raises(Interrupted, match="fedkd resume"):
        fedkd.run(scenario(digits_scenario, tmp_path), out=tmp_path / "run", observers=[diary, stop])
    assert diary.events == [("started", 0), 1, 2]


# On Ray ---------------------------------------------------------------------------------------------------

DEADLY = """
import os
from pathlib import Path

import torch


class Deadly(torch.nn.Module):
    '''A linear classifier that takes its process down once, and leaves a file behind.'''

    def __init__(self, shape, classes, marker):
        super().__init__()
        self.head, self.steps = torch.nn.Linear(64, classes), 0
        self.marker = Path(marker)

    def forward(self, x):
        self.steps += self.training
        if self.steps == 8 and not self.marker.exists():
            self.marker.touch()
            os._exit(1)
        return self.head(x.flatten(1))
"""


@pytest.fixture
def deadly(digits_scenario, tmp_path):
    """Return a function to a scenario in which one client of four takes its process down in round 2.

    Its plug-in lies in a folder of its own, ``plug-ins``.
    """

    def deadly(**changes: Any):
        write_plug_in(tmp_path)
        mix = [{"model": "mlp", "share": 3}]
        mix.append({"model": "deadly:Deadly", "args": {"marker": str(tmp_path / "marker")}})
        changes |= {"rounds": 3, "checkpoint_every": 1, "clients": mix, "plugin_path": ["plug-ins"]}
        return scenario(digits_scenario, tmp_path, **changes)

    return deadly


def write_plug_in(folder: Path) -> None:
    (folder / "plug-ins").mkdir(exist_ok=True)
    (folder / "plug-ins" / "deadly.py").write_text(DEADLY)


@pytest.mark.alone
def test_a_killed_actor_repeats_a_round_with_the_same_results(deadly, tmp_path, ray_session, monkeypatch):
    (tmp_path / "marker").touch()
    unbroken = written(fedkd.run(deadly(), out=tmp_path / "unbroken").folder)
    (tmp_path / "marker").unlink()
    plan, send = (
        deadly(engine={"kind": "ray", "actors": 1, "cpus_per_actor": 0.1}),
        engine_clients.shipped_plugin_files,
    )

    def send_and_remove(sent):
        """Leave actors nothing of the plug-in but what is sent to them, as on another machine."""
        write_plug_in(tmp_path)
        folders = send(sent)
        shutil.rmtree(tmp_path / "plug-ins")
        return folders

    monkeypatch.setattr(engine_clients, "shipped_plugin_files", send_and_remove)
    diary = Diary()
    result = fedkd.run(plan, out=tmp_path / "run", observers=[diary])
    assert written(result.folder) == unbroken
    [told] = [event for event in diary.events if isinstance(event, str)]
    assert told.startswith("client ") and ", round 2: its Ray actor died: " in told
    assert told.endswith("; restarting from the checkpoint of round 1 (1 of 3)")
    assert diary.events[-3:] == [("back", 1), 2, 3]
