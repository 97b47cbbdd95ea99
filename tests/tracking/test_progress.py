from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fedkd.scenario.schema import Scenario
from fedkd.tracking.events import RoundReport, RunReport
from fedkd.tracking.live import LiveProgress
from fedkd.tracking.progress import PlainProgress, make_progress

SCENARIO = Scenario(name="demo", seed=4, rounds=12)
FOLDER = Path("runs/demo-4")
SUMMARY = {
    "final": {
        "accuracy_local": {"mean": 0.871, "std": 0.02, "min": 0.803, "max": 0.901},
        "accuracy_global": {"mean": None},
        "bytes_up": 20_000_000,
        "bytes_down": 1_500,
    },
    "seconds": 83.2,
}
CLOSING = """\
results          runs/demo-4
local accuracy   87.1 %, over clients: sd 2.0, 80.3 to 90.1
global accuracy  –
traffic          up 20.0 MB, down 1.5 kB
time             1 min 23 s
"""
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def _report(round, **changes):
    values = {
        "accuracy_local": 0.871,
        "accuracy_before_fusion_local": 0.871,
        "accuracy_global": 0.7134,
        "accuracy_before_fusion_global": 0.5164,
        "fusion_gain": 0.012,
        "effective_neighbours": 3.42,
        "bytes_up": 2_000_000,
        "bytes_down": 2_000_000,
        "seconds": 1.2,
    }
    return RoundReport(round=round, rounds=12, **(values | changes))


def _play(progress, rounds=12):
    with progress:
        progress.run_started(SCENARIO, FOLDER, 0)
        for round in range(1, rounds + 1):
            progress.phase(round, "train", 7, 10)
            progress.message(f"note [bold]{round}[/bold]")
            progress.round_finished(_report(round))
        progress.run_finished(RunReport(FOLDER, SUMMARY))


def _console(file, *, terminal, width=80, height=40):
    return Console(
        file=file,
        force_terminal=terminal,
        width=width,
        height=height,
        color_system=None,
        _environ={"TERM": "xterm"},
    )


def test_plain_lines_are_aligned_and_exact():
    out = io.StringIO()
    progress = make_progress(False, _console(out, terminal=False))
    assert isinstance(progress, PlainProgress)
    progress.run_started(SCENARIO, FOLDER, 2)
    progress.round_finished(_report(3))
    progress.round_finished(
        RoundReport(round=11, rounds=12, seconds=2.0, bytes_up=999, accuracy_local=1.0, fusion_gain=-0.12)
    )
    progress.round_finished(_report(12))
    progress.run_finished(RunReport(FOLDER, SUMMARY))
    progress.closed()
    assert out.getvalue() == (
        "demo: knfu, 10 clients, 12 rounds, seed 4 → runs/demo-4\n"
        "resumed after round 2\n"
        "round   3/12  local         87.1 %  global  51.6 → 71.3 %  local gain  +1.2 pt  neighbours  3.4"
        "  up   2.0 MB  down   2.0 MB   1.2 s  left 11 s\n"
        "round  11/12  local        100.0 %  global              –  local gain -12.0 pt  neighbours    –"
        "  up    999 B  down      0 B   2.0 s  left 2 s\n"
        "round  12/12  local         87.1 %  global  51.6 → 71.3 %  local gain  +1.2 pt  neighbours  3.4"
        "  up   2.0 MB  down   2.0 MB   1.2 s\n"
        "\n" + CLOSING
    )


def test_a_gain_over_fewer_clients_states_their_number():
    few = {"fusion_gain": -0.35, "metrics": {"train/guided_clients": 4.0}}
    told = []
    for width, terminal in ((80, False), (80, True)):
        out = io.StringIO()
        progress = make_progress(False, _console(out, terminal=terminal, width=width))
        progress.run_started(SCENARIO, FOLDER, 0)
        progress.round_finished(_report(1, **few))
        progress.round_finished(_report(2, metrics={"train/guided_clients": 10.0}))
        progress.closed()
        told.append(out.getvalue())
    assert "local gain -35.0 pt (4 of 10)" in told[0] and "local gain  +1.2 pt  neigh" in told[0]
    assert "-35.0 pt (4)" in told[1] and "…" not in told[1]


def test_quiet_mode_prints_nothing(capfd):
    _play(make_progress(True))
    assert capfd.readouterr() == ("", "")


def test_redirected_output_has_plain_lines_without_rich():
    script = (
        "import sys\n"
        "from fedkd.tracking.progress import make_progress\n"
        "make_progress(False).message('hello')\n"
        "assert 'rich' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("hello\n", "")


def test_a_terminal_shows_a_live_table_that_stays():
    out = io.StringIO()
    progress = make_progress(False, _console(out, terminal=True))
    assert isinstance(progress, LiveProgress)
    _play(progress)
    text = out.getvalue()
    assert text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == 1
    assert "note [bold]1[/bold]" in text  # messages are not markup
    assert text.endswith(CLOSING)
    last_table = text[text.rindex("before/after") : text.index("results")]
    assert re.findall(r"^ *(\d+)/12", last_table, re.MULTILINE) == [str(round) for round in range(3, 13)]
    assert "⋮" in last_table
    row = next(line for line in last_table.splitlines() if "12/12" in line)
    assert " ".join(row.split()) == "12/12 87.1 % 51.6 → 71.3 % +1.2 pt 2.0 MB 2.0 MB 1.2"


def test_a_wide_terminal_shows_the_neighbours():
    out = io.StringIO()
    progress = LiveProgress(_console(io.StringIO(), terminal=True, width=94))
    progress.run_started(SCENARIO, FOLDER, 0)
    progress.round_finished(_report(1, accuracy_before_fusion_local=1.0, seconds=1234.5))
    _console(out, terminal=False, width=94).print(progress._display())
    progress.closed()
    row = next(line for line in out.getvalue().splitlines() if "1/12" in line)
    assert " ".join(row.split()) == "1/12 100.0 → 87.1 % 51.6 → 71.3 % +1.2 pt 3.4 2.0 MB 2.0 MB 1234"


def test_the_live_table_counts_a_training_after_the_last_round():
    out = io.StringIO()
    progress = LiveProgress(_console(io.StringIO(), terminal=True))
    progress.run_started(SCENARIO.model_copy(update={"end_with": "training"}), FOLDER, 12)
    progress.phase(13, "finish", 3, 10)
    _console(out, terminal=False).print(progress._display())
    progress.closed()
    assert "round 13/13 · finish 3/10 clients" in out.getvalue()


def test_the_bar_shows_phase_and_time_left():
    progress = LiveProgress(_console(io.StringIO(), terminal=True))
    progress.run_started(SCENARIO, FOLDER, 0)
    progress.round_finished(_report(1, seconds=60.0))
    progress.phase(2, "train", 7, 10)
    out = io.StringIO()
    _console(out, terminal=False).print(progress._display())
    progress.closed()
    assert "round 2/12 · train 7/10 clients · 11 min 00 s left" in out.getvalue()


def test_the_bar_names_the_saved_round_and_ends_on_interrupt():
    out = io.StringIO()
    progress = LiveProgress(_console(io.StringIO(), terminal=True))
    progress.run_started(SCENARIO, FOLDER, 0)
    progress.round_finished(_report(1, seconds=60.0))
    progress.phase(1, "save", 3, 10)
    _console(out, terminal=False).print(progress._display())
    assert "round 1/12 · save 3/10 clients" in out.getvalue()
    progress.closed()
    out.truncate(0)
    _console(out, terminal=False).print(progress._display())
    assert "1/12" in out.getvalue() and "save" not in out.getvalue() and "left" not in out.getvalue()


def test_plain_lines_stop_after_the_pipe_closes():
    class Pipe(io.StringIO):
        def flush(self):
            if self.getvalue().count("\n") > 1:
                raise BrokenPipeError

    pipe = Pipe()
    _play(PlainProgress(pipe))
    assert pipe.getvalue().count("\n") == 2


@pytest.mark.parametrize(("height", "shown"), [(40, 10), (12, 4), (5, 1)])
def test_the_table_and_its_bar_fit_the_terminal(height, shown):
    progress = LiveProgress(_console(io.StringIO(), terminal=True, height=height))
    progress.run_started(SCENARIO, FOLDER, 0)
    for round in range(1, 12):
        progress.round_finished(
            _report(
                round,
                accuracy_before_fusion_local=1.0,
                fusion_gain=-0.12,
                bytes_down=999_900_000,
                seconds=830.0,
            )
        )
    out = io.StringIO()
    _console(out, terminal=False).print(progress._display())
    progress.closed()
    lines = out.getvalue().splitlines()
    assert len(re.findall(r"^ *\d+/12 ", out.getvalue(), re.MULTILINE)) == shown
    assert "…" not in out.getvalue()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= max(height, 9)


def test_the_terminal_is_restored_when_the_run_raises():
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), LiveProgress(_console(out, terminal=True)) as progress:
        progress.run_started(SCENARIO, FOLDER, 0)
        progress.round_finished(_report(1))
        raise KeyboardInterrupt
    progress.closed()
    text = out.getvalue()
    assert text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == 1
    assert text.rindex(SHOW_CURSOR) > text.rindex("1/12")


def test_regression_shows_its_metric_and_no_percentages():
    means = {
        "local/rmse": 57.866,
        "local/rmse_before_fusion": 62.947,
        "global/rmse": 58.1,
        "global/rmse_before_fusion": 58.1,
    }
    nothing = dict.fromkeys(("accuracy_local", "accuracy_before_fusion_local", "accuracy_global",
                             "accuracy_before_fusion_global"))  # fmt: skip
    report = _report(3, **nothing, metric="rmse", metrics=means, fusion_gain=5.081)
    plain, live = io.StringIO(), Console(file=io.StringIO(), width=110, force_terminal=True, record=True)
    with PlainProgress(plain) as progress:
        progress.run_started(SCENARIO, FOLDER, 0)
        progress.round_finished(report)
    assert "local rmse  62.95 → 57.87  global rmse           58.1  local gain    +5.08" in plain.getvalue()
    with LiveProgress(live) as progress:
        progress.run_started(SCENARIO, FOLDER, 0)
        progress.round_finished(report)
    text = live.export_text()
    assert "local rmse" in text and "62.95 → 57.87" in text and "+5.08" in text and "acc." not in text
    assert "%" not in plain.getvalue() + text
