from __future__ import annotations

import sys
import time
import types
from pathlib import Path

import pytest

from fedkd.scenario.schema import Scenario
from fedkd.tracking.events import RoundReport, RunReport
from fedkd.tracking.wandb_logger import WandbLogger


def _scenario(mode: str | None) -> Scenario:
    wandb = {"mode": mode, "project": "p", "entity": "e", "group": "g", "tags": ["a"]} if mode else None
    return Scenario.model_validate({"name": "demo", "seed": 4, "rounds": 2, "tracking": {"wandb": wandb}})


def _play(folder: Path, mode: str | None = "offline", *, finish: bool = True) -> list[str]:
    warnings: list[str] = []
    with WandbLogger(warn=warnings.append) as logger:
        logger.run_started(_scenario(mode), folder, 0)
        for round in (1, 2):
            logger.round_finished(
                RoundReport(
                    round,
                    2,
                    accuracy_local=0.25 * round,
                    bytes_up=10,
                    seconds=0.5,
                    metrics={"local/loss": 1.5},
                )
            )
        if finish:
            logger.run_finished(RunReport(folder, {"seconds": 1.0, "final": {"bytes_up": 20}}))
    return warnings


class FakeWandb(types.ModuleType):
    """Stands in for the package; `failing` names the call that raises."""

    def __init__(self, *, failing: str = "", has_key: bool = True):
        super().__init__("wandb")
        self.failing, self.has_key = failing, has_key
        self.opened: list[dict] = []
        self.logged: list[dict] = []
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

    def log(self, values):
        self._call("log")
        self.logged.append(values)

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
    assert ("*", "round") in wandb.defined
    assert wandb.logged == [
        {
            "round": r,
            "local/accuracy": 0.25 * r,
            "local/loss": 1.5,
            "bytes/up": 10,
            "bytes/down": 0,
            "seconds": 0.5,
        }
        for r in (1, 2)
    ]
    assert wandb.summary["final"] == {"bytes_up": 20}
    assert wandb.exit_codes == [0]
    opened = wandb.opened[0]
    assert (opened["project"], opened["entity"], opened["group"], opened["tags"]) == ("p", "e", "g", ["a"])
    assert opened["name"] == "demo-seed4"
    assert opened["config"]["training"]["lr"] == 1e-3
    assert opened["dir"] == tmp_path


def test_a_folder_keeps_its_identity_and_another_has_another(fake, tmp_path):
    wandb = fake()
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path, tmp_path / "other"):
        _play(folder)
    first, resumed, other = [opened["id"] for opened in wandb.opened]
    assert first == resumed != other


def test_rounds_that_are_repeated_are_logged_once(fake, tmp_path):
    wandb = fake()
    with WandbLogger() as logger:
        logger.run_started(_scenario("offline"), tmp_path, 0)
        for round in (1, 2, 3):
            logger.round_finished(RoundReport(round, 4))
        logger.went_back(_scenario("offline"), tmp_path, 1)
        for round in (2, 3, 4):
            logger.round_finished(RoundReport(round, 4))
    assert [values["round"] for values in wandb.logged] == [1, 2, 3, 4]
    assert len(wandb.opened) == 1


def test_a_run_that_did_not_finish_is_closed_as_failed(fake, tmp_path):
    wandb = fake()
    assert _play(tmp_path, finish=False) == []
    assert wandb.exit_codes == [1]


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_any_failure_is_told_once_and_the_run_goes_on(fake, tmp_path, failing):
    fake(failing=failing)
    assert _play(tmp_path) == [
        f"wandb is switched off, the run goes on: ConnectionError: {failing} is broken"
    ]


def test_a_missing_package_is_told_once(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    (warning,) = _play(tmp_path)
    assert warning.startswith("wandb is switched off, the run goes on: ModuleNotFoundError")


def test_online_without_a_key_goes_offline_and_asks_nobody(fake, tmp_path, capfd):
    wandb = fake(has_key=False)
    (warning,) = _play(tmp_path, "online")
    assert "no API key" in warning
    assert [opened["settings"]["mode"] for opened in wandb.opened] == ["offline"]
    assert len(wandb.logged) == 2
    assert capfd.readouterr() == ("", "")


def test_online_without_a_network_goes_offline_under_a_new_identity(fake, tmp_path):
    wandb = fake(failing="init online")
    (warning,) = _play(tmp_path, "online")
    assert "logging offline" in warning
    assert [opened["settings"]["mode"] for opened in wandb.opened] == ["online", "offline"]
    assert wandb.opened[0]["id"] != wandb.opened[1]["id"] == (tmp_path / "wandb-id").read_text().strip()
    assert len(wandb.logged) == 2


@pytest.mark.parametrize("mode", [None, "disabled"])
def test_without_wandb_nothing_happens(fake, tmp_path, mode):
    wandb = fake(failing="init")
    assert _play(tmp_path, mode) == []
    assert wandb.opened == []
    assert list(tmp_path.iterdir()) == []


def test_the_real_package_works_offline_quickly_and_quietly(tmp_path, capfd):
    pytest.importorskip("wandb")
    began = time.monotonic()
    assert _play(tmp_path) == []
    assert time.monotonic() - began < 30
    assert capfd.readouterr() == ("", "")
    (run_file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    # wandb's own process writes the file, a moment after the run is closed.
    while b"demo-seed4" not in (content := run_file.read_bytes()) and time.monotonic() - began < 30:
        time.sleep(0.05)
    for name in (b"local/accuracy", b"local/loss", b"demo-seed4"):
        assert name in content
