"""The campaign of hostile cases in short, and that it would notice what it is there to notice."""

from __future__ import annotations

import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import processes
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

from campaign import kills, sandbox
from campaign.base import Bench
from campaign.campaign import KINDS, main
from campaign.sandbox import Place
from campaign.verdict import complaints


def test_a_short_campaign_has_no_findings(tmp_path):
    campaign = processes.Fork(["--cases", 12, "--seed", 18, "--jobs", 1], tmp_path, main=main)
    status, said = campaign.wait(timeout=240), campaign.stdout
    assert status == 0, said + campaign.stderr
    assert "12 cases" in said and "; 0 findings" in said
    for kind in KINDS:
        assert f" {kind}" in said


def leave(status: int, *, errors: str = "", said: str = "") -> Callable[[list[str]], int]:
    def command(words: list[str]) -> int:
        sys.stdout.write(said)
        sys.stderr.write(errors)
        return status

    return command


def raise_it(words: list[str]) -> int:
    raise ValueError("let out")


def warn(words: list[str]) -> int:
    sys.stderr.write(warnings.formatwarning("overflow", RuntimeWarning, "/somewhere/fedkd/module.py", 3, ""))
    return 0


def stray(words: list[str]) -> int:
    (Path.home() / "left").write_text("behind")
    return 0


def stay(words: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        time.sleep(1)


OFFENDERS = {
    "another exit status": (leave(7), "exit status 7"),
    "an exception let out": (raise_it, "a traceback"),
    "an internal error": (leave(3, errors="error: oh (internal error; …)\n"), "an internal error"),
    "no error": (leave(2), "0 lines begin with 'error: '"),
    "two errors": (leave(2, errors="error: a\nerror: b\n"), "2 lines begin with 'error: '"),
    "a long message": (leave(3, errors="error: a\n" + "more\n" * 3), "4 lines on standard error"),
    "an error all the same": (leave(0, errors="error: a\n"), "an error, and exit status 0"),
    "a warning": (warn, "a warning: "),
    "a file at home": (stray, "outside the run folder: home/left"),
    "one that stays": (stay, "does not end when it is asked to"),
}


@pytest.mark.parametrize("name", OFFENDERS)
def test_an_offender_is_noticed(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "PATIENCE", 0.5)
    command, words = OFFENDERS[name]
    outcome = Place(tmp_path / "place").run(command, ["run"])
    assert [told for told in complaints(outcome) if words in told], (outcome, list(complaints(outcome)))


def test_correct_outcomes_have_no_complaints(tmp_path):
    place = Place(tmp_path / "place")
    assert not list(complaints(place.run(leave(0, said="done\n"), [])))
    assert not list(complaints(place.run(leave(2, errors="error: a.toml: rounds: must be ≥ 1\n"), [])))


@pytest.mark.parametrize(("resumed", "wrong"), [("1\n2\n", []), ("1\n3\n", ["other metrics"])])
def test_a_resume_with_other_results_is_noticed(resumed, wrong, tmp_path):
    """A run that writes a line, waits to be killed, and writes another; its resume writes what it likes."""

    def command(words: list[str]) -> int:
        if words[0] == "resume":
            (Path(words[1]) / "metrics.jsonl").write_text(resumed)
            return 0
        try:
            folder = Path(words[words.index("--out") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "scenario.toml").write_text("rounds = 2\n")
            (folder / "metrics.jsonl").write_text("1\n")
            time.sleep(0.3)
            (folder / "metrics.jsonl").write_text("1\n2\n")
            return 0
        except KeyboardInterrupt:
            sys.stderr.write("error: interrupted\n")
            return 130

    bench = Bench(command, tmp_path)
    found = []
    for number in range(7):  # some are killed in time
        rng = np.random.default_rng(number)
        found += kills.attempt(Place(tmp_path / f"case-{number}"), bench, rng)
    assert {text[: len("other metrics")] for text in found} == set(wrong)
