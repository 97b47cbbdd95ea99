"""wandb, by a stand-in, and by the package itself offline."""

from __future__ import annotations

import json
import struct
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd.scenario.schema import Scenario
from fedkd.tracking.events import RoundReport, RunReport
from fedkd.tracking.loggers.registry import make_loggers
from fedkd.tracking.neighbours import write_neighbours
from fedkd.tracking.recorder import METRICS_FILE, SUMMARY_FILE

pytestmark = pytest.mark.usefixtures("no_report")


def _scenario(mode: str | None, **changes) -> Scenario:
    wandb = {"mode": mode, "project": "p", "entity": "e", "group": "g", "tags": ["a"], **changes}
    tables = {"name": "demo", "seed": 4, "rounds": 2, "tracking": {"wandb": wandb if mode else None}}
    return Scenario.model_validate(tables)


def _play(
    folder: Path, mode: str | None = "offline", *, finish: bool = True, resumed_from: int = 0, **changes
) -> list[str]:
    warnings: list[str] = []
    (folder / METRICS_FILE).touch()
    scenario = _scenario(mode, **changes)
    for logger in make_loggers(scenario, warnings.append):
        with logger:
            logger.run_started(scenario, folder, resumed_from)
            for round in range(resumed_from + 1, resumed_from + 3):
                report = RoundReport(
                    round,
                    resumed_from + 2,
                    accuracy_local=0.25 * round,
                    bytes_up=10,
                    seconds=0.5,
                    metrics={"local/loss": 1.5},
                )
                logger.round_finished(report)
            if finish:
                logger.run_finished(RunReport(folder, {"seconds": 1.0, "final": {"bytes_up": 20}}))
    return warnings


class FakeWandb(types.ModuleType):
    """Stands in for the package; `failing` names the call that raises."""

    def __init__(self, *, failing: str = "", has_key: bool = True):
        super().__init__("wandb")
        self.failing, self.has_key = failing, has_key
        self.opened: list[dict] = []
        self.logged: list[tuple[int, dict]] = []
        self.defined: list[tuple] = []
        self.exit_codes: list[int] = []
        self.summary: dict = {}
        self.Settings = dict

    def _call(self, name):
        if name == self.failing:
            raise ConnectionError(f"{name}\nis broken")

    def login(self, *, prompt, verify):
        assert not prompt
        print("wandb: chatter", file=sys.stderr)
        return self.has_key

    def init(self, **arguments):
        self.opened.append(arguments)
        self._call("init")
        self._call(f"init {arguments['settings']['mode']}")
        return self

    def define_metric(self, name, step_metric=None):
        self.defined.append((name, step_metric))

    def log(self, values, step):
        self._call("log")
        self.logged.append((step, values))

    def finish(self, exit_code):
        self._call("finish")
        self.exit_codes.append(exit_code)


@pytest.fixture
def fake(monkeypatch):
    def install(**arguments):
        module = FakeWandb(**arguments)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return install


def test_rounds_are_logged_under_the_names_of_the_recorded_metrics(fake, tmp_path):
    wandb = fake()
    assert _play(tmp_path) == []
    assert ("*", "round") in wandb.defined and ("by_task/*", "task") in wandb.defined
    row = {"local/loss": 1.5, "bytes/up": 10, "bytes/down": 0, "seconds": 0.5}
    assert wandb.logged == [(r, {"round": r, "local/accuracy": 0.25 * r, **row}) for r in (1, 2)]
    assert wandb.summary["final"] == {"bytes_up": 20}
    assert wandb.exit_codes == [0]
    opened = wandb.opened[0]
    assert (opened["project"], opened["entity"], opened["group"], opened["tags"]) == ("p", "e", "g", ["a"])
    assert opened["name"] == "demo-seed4"
    assert opened["config"]["training"]["lr"] == 1e-3
    assert opened["dir"] == tmp_path


def test_each_folder_has_its_own_constant_identity(fake, tmp_path):
    wandb = fake()
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path, tmp_path / "other"):
        _play(folder, name="mine")
    first, resumed, other = [opened["id"] for opened in wandb.opened]
    assert first == resumed != other
    assert wandb.opened[0]["name"] == "mine"


def test_an_unfinished_run_is_closed_as_failed(fake, tmp_path):
    wandb = fake()
    assert _play(tmp_path, finish=False) == []
    assert wandb.exit_codes == [1]


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_a_failure_is_reported_once_and_the_run_continues(fake, tmp_path, failing):
    fake(failing=failing)
    assert _play(tmp_path) == [
        f"wandb is switched off, the run continues: ConnectionError: {failing} is broken"
    ]


def test_a_missing_package_is_reported_once(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    (warning,) = _play(tmp_path)
    assert warning.startswith("wandb is switched off, the run continues: ModuleNotFoundError")


def test_online_mode_without_a_key_goes_offline_without_a_prompt(fake, tmp_path, capfd):
    wandb = fake(has_key=False)
    (warning,) = _play(tmp_path, "online")
    assert "no API key" in warning
    assert [opened["settings"]["mode"] for opened in wandb.opened] == ["offline"]
    assert len(wandb.logged) == 2
    assert capfd.readouterr() == ("", "")


def test_online_mode_without_a_network_goes_offline_as_a_new_run(fake, tmp_path):
    wandb = fake(failing="init online")
    (warning,) = _play(tmp_path, "online")
    assert "logging offline" in warning
    assert [opened["settings"]["mode"] for opened in wandb.opened] == ["online", "offline"]
    assert wandb.opened[0]["id"] != wandb.opened[1]["id"] == (tmp_path / "wandb-id").read_text().strip()
    assert len(wandb.logged) == 2


@pytest.mark.parametrize("mode", [None, "disabled"])
def test_a_scenario_without_wandb_logs_nothing(fake, tmp_path, mode):
    wandb = fake(failing="init")
    assert _play(tmp_path, mode) == []
    assert wandb.opened == []
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]


# The package itself -----------------------------------------------------------------------------------


def records_of(path: Path) -> Iterator[Any]:
    """Yield wandb's own messages from its log: LevelDB's blocks of 32 KB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_offline_files_are_complete(tmp_path, capfd):
    pytest.importorskip("wandb")
    write_neighbours(tmp_path, 1, (0, 1), np.eye(2))
    (tmp_path / SUMMARY_FILE).write_text("{}\n")
    began = time.monotonic()
    assert _play(tmp_path, artifacts=["record"]) == []
    assert capfd.readouterr() == ("", "")
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    records: list[Any] = []
    # wandb's own process writes the file, a moment after the run is closed.
    while not any(record.HasField("exit") for record in records) and time.monotonic() - began < 60:
        time.sleep(0.05)
        records = list(records_of(path))
    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.display_name, run.run_group, list(run.tags)) == ("demo-seed4", "g", ["a"])
    assert run.run_id == (tmp_path / "wandb-id").read_text().strip()
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert config["training"]["lr"] == 1e-3
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(row["round"], row["_step"], row["local/accuracy"]) for row in rows] == [
        (1, 1, 0.25),
        (2, 2, 0.5),
    ]
    assert rows[0]["fusion/weights/_type"] == "image-file"
    files = [
        entry.path
        for record in records
        if record.WhichOneof("record_type") in ("artifact", "request")
        for entry in (
            record.artifact if record.HasField("artifact") else record.request.log_artifact.artifact
        ).manifest.contents
    ]
    assert set(files) == {METRICS_FILE, SUMMARY_FILE}
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
