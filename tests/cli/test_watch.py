"""`fedkd watch` follows a run from its folder."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import fedkd
from fedkd.cli.main import main
from fedkd.cli.watch import _Follower, watch
from fedkd.errors import Interrupted, RunFailed, UserError
from fedkd.plan.load import parse_plan
from fedkd.tracking.events import RunObserver
from fedkd.tracking.present import ProgressFile, read_progress

pytestmark = pytest.mark.usefixtures("no_report")


class Told(RunObserver):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.reports, self.messages, self.phases, self.ends = [], [], [], []

    def phase(self, round, phase, done, total):
        self.phases.append((round, phase, done, total))

    def answered(self, round, phase, client, seconds):
        self.phases.append((round, "slowest", client))

    def round_finished(self, report):
        self.reports.append(report)

    def run_finished(self, report):
        self.ends.append(report)

    def message(self, text):
        self.messages.append(text)


class Watched(Told):
    """Has somebody follow the run from its folder, message by message."""

    def __init__(self, plan, stop: bool = False) -> None:
        super().__init__()
        self.plan, self.seen, self.stop = plan, Told(), stop
        self.follower: _Follower | None = None
        self.ended: list[bool] = []

    def run_started(self, scenario, folder, resumed_from):
        self.folder = folder
        self.follower = _Follower(self.plan, folder, self.seen)

    def phase(self, round, phase, done, total):
        self.ended.append(self.follower.step())
        if self.stop and round == 2:
            raise KeyboardInterrupt

    def round_finished(self, report):
        super().round_finished(report)


@pytest.fixture
def every_message(monkeypatch):
    """Have `progress.json` written with every message, not once a second."""
    monkeypatch.setattr("fedkd.tracking.present.EVERY_SECONDS", 0.0)


@pytest.mark.parametrize("stream", [False, True])
def test_watch_shows_the_rounds_that_the_run_prints(stream, digits_scenario, tmp_path, every_message):
    if stream:
        del digits_scenario["rounds"]
        digits_scenario["continual"] = {"learner": "naive", "tasks": {"kind": "split", "count": 2}}
        digits_scenario["data"]["partition"] = {"scheme": "iid", "samples_per_client": 40}
    watched = Watched(parse_plan(digits_scenario))
    fedkd.run(digits_scenario, out=tmp_path / "run", observers=[watched])
    assert not any(watched.ended), "it was under way"
    assert [report.round for report in watched.seen.reports] == [1, 2], "the second while it is saved"
    assert watched.follower.step(), "it has ended"
    assert [end.summary["status"] for end in watched.seen.ends] == ["done"]

    def lasting(report):  # times are told phase by phase; of other metrics nothing is shown
        metrics = {name: value for name, value in report.metrics.items() if name.startswith("accuracy_")}
        return replace(report, seconds=0.0, metrics=metrics)

    assert list(map(lasting, watched.seen.reports)) == list(map(lasting, watched.reports))
    for seen, told in zip(watched.seen.reports, watched.reports, strict=True):
        assert 0 < seen.seconds <= told.seconds
    phases = [phase for phase in watched.seen.phases if phase[1] == "train"]
    assert (1, "train", 2, 4) in phases
    assert {client for _, what, client, *_ in watched.seen.phases if what == "slowest"} <= {0, 1, 2, 3}


def test_watch_shows_interrupted_and_failed_runs(digits_scenario, tmp_path, every_message):
    watched = Watched(parse_plan(digits_scenario), stop=True)
    with pytest.raises(Interrupted):
        fedkd.run(digits_scenario, out=tmp_path / "run", observers=[watched])
    assert watched.follower.step()
    assert watched.seen.messages[-1].startswith("interrupted: stopped at once; the last checkpoint is saved")
    log = (tmp_path / "run" / "run.log").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4}  interrupted: stopped at once.*", log[-1])
    fedkd.resume(tmp_path / "run")
    whole = (tmp_path / "run" / "run.log").read_text()
    assert whole.startswith("\n".join(log)) and "resumed after round 1" in whole
    assert whole.count("  round  2/2") == 1 and "results  " in whole

    (tmp_path / "broken.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Linear):\n"
        "    def __init__(self, shape, classes):\n        super().__init__(64, classes)\n\n"
        "    def forward(self, x):\n        assert not self.training, 'no way'\n"
        "        return super().forward(x.flatten(1))\n"
    )
    tables = digits_scenario | {"clients": [{"model": "broken:Net"}], "plugin_path": [str(tmp_path)]}
    with pytest.raises(RunFailed):
        fedkd.run(tables, out=tmp_path / "failed")
    told = Told()
    watch(tmp_path / "failed", observer=told)
    assert told.messages[-1].startswith("failed: client 0, round 1: AssertionError: no way")


def test_watch_recognises_a_killed_run(digits_scenario, tmp_path, capsys):
    fedkd.run(digits_scenario, out=tmp_path / "run", progress=False)
    (tmp_path / "run" / "summary.json").unlink()
    present = json.loads((tmp_path / "run" / "progress.json").read_text())
    present |= {"status": "running", "finished": 1, "round": 2, "phase": "train", "done": 3, "total": 4}
    (tmp_path / "run" / "progress.json").write_text(json.dumps(present))
    assert main(["watch", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("round")] == ["1/2"]
    assert lines[-1].startswith("the run stopped before its end; continue with: fedkd resume")
    (tmp_path / "run" / "progress.json").unlink()  # as of an earlier version
    told = Told()
    watch(tmp_path / "run", observer=told)
    assert [report.round for report in told.reports] == [1], "the last round might have no end"


def test_rows_that_a_resumed_run_truncates_are_read_again(digits_scenario, tmp_path):
    fedkd.run(digits_scenario, out=tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    told = Told()
    follower = _Follower(parse_plan(digits_scenario), tmp_path / "run", told)
    follower.step()
    path = tmp_path / "run" / "timings.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:9])
    follower.step()
    assert "the run restarted from an earlier round" in told.messages
    path.write_text("".join(lines))
    follower.step()
    assert [report.round for report in told.reports][-1] == 2


def test_watch_once_prints_plain_lines(digits_scenario, tmp_path, capsys, monkeypatch, every_message):
    class Looking(RunObserver):
        def run_started(self, scenario, folder, resumed_from):
            self.folder = folder

        def phase(self, round, phase, done, total):
            if (round, phase, done) == (2, "train", 3):
                watch(self.folder, once=True)

    fedkd.run(digits_scenario, out=tmp_path / "run", observers=[Looking()], progress=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("round  1/2  local ")
    assert re.match(
        r"^       2/2  train 2/4 clients  slowest client [01] \(.* s\)  \d+ s left in this phase$", lines[2]
    )


def test_other_folders_cannot_be_watched(tmp_path, capsys):
    assert main(["watch", str(tmp_path)]) == 2
    assert "not a run folder: it has no scenario.toml" in capsys.readouterr().err
    with pytest.raises(UserError, match="not a run folder"):
        watch(Path(tmp_path / "nowhere"))


def test_malformed_progress_files_are_ignored(tmp_path):
    assert read_progress(tmp_path) is None
    for text in ("", "{", "3", "{}", '{"slowest": 3}', '{"status": "running", "slowest": null}'):
        (tmp_path / "progress.json").write_text(text)
        assert read_progress(tmp_path) is None


def test_progress_is_written_about_once_a_second(tmp_path):
    now = [0.0]
    file = ProgressFile(lambda: now[0])
    file.run_started(parse_plan({"rounds": 2}).scenario, tmp_path, 0)
    done = []
    for second in (0.2, 0.4, 1.1, 1.3):
        now[0] = second
        file.phase(1, "train", int(10 * second), 20)
        done.append(read_progress(tmp_path).done)
    assert done == [0, 0, 11, 11]
