"""Ctrl-C reaches every process of a run, and the round finishes."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
from processes import program

from fedkd.cli.main import main

ROUNDS = 40


@pytest.mark.alone
def test_ctrl_c_on_ray_finishes_the_round_and_names_the_resume_command(digits_toml, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["run", str(digits_toml), "--out", str(out), "--set", f"rounds={ROUNDS}", "engine.kind=ray"]
    words.append("engine.actors=1")
    # A process group of its own, as a shell gives to a command on a terminal.
    process = program(words, start_new_session=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if f" 2/{ROUNDS} " in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        said, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopping after this round" in said
    assert error.startswith("error: stopped after round ") and error.count("\n") == 1
    assert f"fedkd resume {out}" in error

    stopped = int(error.split()[4])
    rounds = {json.loads(line)["round"] for line in (out / "metrics.jsonl").read_text().splitlines()}
    assert rounds == set(range(1, stopped + 1))
    text = (out / "scenario.toml").read_text().replace('kind = "ray"', 'kind = "inline"')
    (out / "scenario.toml").write_text(text)
    assert main(["resume", str(out), "--quiet"]) == 0
    assert json.loads((out / "summary.json").read_text())["rounds"] == ROUNDS
    assert capsys.readouterr().err == ""


HALF_MADE = """
class Half:
    def __init__(self):
        raise KeyboardInterrupt

    def __del__(self):
        self.never_set


def load():
    Half()
"""


@pytest.mark.parametrize("verb", ["check", "run"])
def test_an_interrupt_removes_half_made_files_silently(verb, digits_toml, tmp_path, capsys, monkeypatch):
    (tmp_path / "half_made.py").write_text(HALF_MADE)
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    words = [verb, str(digits_toml), "--set", "data.dataset=half_made:load", "fusion.strategy=local"]
    assert main([*words, *(["--out", str(tmp_path / "out"), "--quiet"] * (verb == "run"))]) == 130
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not told
