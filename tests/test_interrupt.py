"""Ctrl-C on a terminal reaches every process of the run: Ray's too, and the round still finishes."""

from __future__ import annotations

import json
import os
import signal

from processes import program

from fedkd.cli import main

ROUNDS = 40


def test_ctrl_c_on_ray_finishes_the_round_and_names_the_resume_command(digits_toml, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["run", str(digits_toml), "--out", str(out), "--set", f"rounds={ROUNDS}", "engine.kind=ray"]
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
