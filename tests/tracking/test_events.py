from __future__ import annotations

from pathlib import Path

import pytest

from fedkd.scenario.schema import Scenario
from fedkd.tracking.events import Observers, RoundReport, RunObserver, RunReport


class Memory(RunObserver):
    def __init__(self):
        self.calls = []

    def run_started(self, scenario, folder, resumed_from):
        self.calls.append(("run_started", scenario.name, folder, resumed_from))

    def phase(self, round, phase, done, total):
        self.calls.append(("phase", round, phase, done, total))

    def round_finished(self, report):
        self.calls.append(("round_finished", report.round))

    def run_finished(self, report):
        self.calls.append(("run_finished", report.folder))

    def message(self, text):
        self.calls.append(("message", text))

    def closed(self):
        self.calls.append(("closed",))


class Broken(Memory):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def phase(self, round, phase, done, total):
        raise self.error

    def closed(self):
        super().closed()
        raise OSError("cannot even close")


def _tell_everything(observer):
    observer.run_started(Scenario(name="a"), Path("runs/a"), 2)
    observer.phase(3, "train", 1, 10)
    observer.phase(3, "train", 2, 10)
    observer.round_finished(RoundReport(round=3, rounds=3))
    observer.message("hello")
    observer.run_finished(RunReport(Path("runs/a"), {}))
    observer.closed()


def test_every_hook_reaches_every_observer_in_order():
    first, second = Memory(), Memory()
    _tell_everything(Observers([first, second]))
    assert first.calls == second.calls
    assert first.calls == [
        ("run_started", "a", Path("runs/a"), 2),
        ("phase", 3, "train", 1, 10),
        ("phase", 3, "train", 2, 10),
        ("round_finished", 3),
        ("message", "hello"),
        ("run_finished", Path("runs/a")),
        ("closed",),
    ]


def test_the_base_observer_does_nothing():
    _tell_everything(RunObserver())


def test_a_failing_observer_is_closed_and_dropped_with_one_warning(caplog):
    broken, healthy = Broken(ValueError("no ink")), Memory()
    observers = Observers([broken, healthy])
    _tell_everything(observers)
    assert [call[0] for call in broken.calls] == ["run_started", "closed"]
    assert len(healthy.calls) == 7
    assert [record.getMessage() for record in caplog.records] == [
        "Broken failed and is switched off: ValueError: no ink"
    ]


def test_ctrl_c_inside_an_observer_stops_the_run():
    with pytest.raises(KeyboardInterrupt):
        _tell_everything(Observers([Broken(KeyboardInterrupt())]))


def test_the_context_closes_observers_after_an_exception():
    memory = Memory()
    with pytest.raises(RuntimeError), Observers([memory]):
        raise RuntimeError
    assert memory.calls == [("closed",)]
