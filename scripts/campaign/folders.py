"""Cases whose run folder, or bench folder, was damaged before it is gone on with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from campaign.base import Bench, stream_tables, tables, write_data
from campaign.sandbox import WHOLE, Place
from campaign.values import damaged

LONGER = 3
"""Rounds that a run of two is made longer to."""
BENCHES = 0.04
"""Share of cases with a bench: figures take long."""


def attempt(place: Place, bench: Bench, rng: np.random.Generator) -> list[str]:
    """Damage a folder, go on with it, and compare what came of it with the undamaged one."""
    if rng.random() < BENCHES:
        return _bench(place, bench, rng)
    name = str(rng.choice(["finished", "stopped", "begun", "stream"]))
    template, expected = bench.once(f"folder-{name}", lambda: _template(bench, name))
    run = place.out / "run"
    shutil.copytree(template, run, symlinks=True)
    for _ in range(1 if rng.random() < 0.8 else 3):
        _damage(run, rng)
    longer = name in ("finished", "stopped") and rng.random() < 0.4
    words = ["resume", run, "--quiet", *(["--rounds", LONGER] if longer else [])]
    outcome = place.run(bench.command, words, patience=WHOLE)
    if outcome.status != 0:
        return []
    if rng.random() < 0.3:  # once more: whatever was found out must not depend on what the first left
        outcome = place.run(bench.command, ["resume", run, "--quiet"], patience=WHOLE)
        if outcome.status != 0:
            return ["what a resume has made whole is refused by the next"]
    return _compared(run, expected[LONGER if longer else 2])


def _compared(run: Path, expected: tuple[bytes, Any]) -> list[str]:
    metrics, final = expected
    wrong = []
    if (run / "metrics.jsonl").read_bytes() != metrics:
        wrong.append("other metrics than the undamaged run's")
    if _final(run) != final:
        wrong.append("another summary than the undamaged run's")
    return wrong


def _final(run: Path) -> Any:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return [summary[key] for key in ("seed", "status", "rounds", "final")]


def _template(bench: Bench, name: str) -> tuple[Path, dict[int, tuple[bytes, Any]]]:
    """Make a run folder to damage; return it and what has to come of it, by number of rounds."""
    place = Place(bench.folder / f"template-{name}")
    scenario = stream_tables("ewc") if name == "stream" else tables(fusion={"strategy": "knfu", "beta": 1.0})
    write_data(place)
    scenario["data"]["args"]["path"] = str(place.inputs / "small.npz")
    path = place.inputs / "scenario.toml"
    path.write_text(tomli_w.dumps(scenario), encoding="utf-8")
    run, expected = place.out / "run", {}
    assert place.run(bench.command, ["run", path, "--quiet", "--out", run], patience=WHOLE).status == 0
    expected[2] = (run / "metrics.jsonl").read_bytes(), _final(run)
    kept = place.out / "kept"
    shutil.copytree(run, kept)
    if name != "stream":
        assert (
            place.run(bench.command, ["resume", run, "--quiet", "--rounds", LONGER], patience=WHOLE).status
            == 0
        )
        expected[LONGER] = (run / "metrics.jsonl").read_bytes(), _final(run)
    if name == "stopped":  # as a kill after the first round leaves it
        (kept / "summary.json").unlink()
        shutil.rmtree(kept / "checkpoints" / "round-00002")
    if name == "begun":  # as a kill in the first round does
        for left in kept.iterdir():
            if left.name not in ("scenario.toml", "schedule.json", ".lock"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return kept, expected


def _damage(folder: Path, rng: np.random.Generator) -> None:
    """Do something to one file, or to one folder, that no program of fedkd does."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    if not files:
        return
    file = files[rng.integers(len(files))]
    roll = rng.random()
    if roll < 0.6:
        content = damaged(file.read_bytes(), rng)
        file.unlink()  # others may be hard links to it
        file.write_bytes(content)
    elif roll < 0.7:
        file.unlink()
    elif roll < 0.78:
        other = files[rng.integers(len(files))]
        one, two = file.read_bytes(), other.read_bytes()
        for path, content in ((file, two), (other, one)):
            path.unlink()
            path.write_bytes(content)
    elif roll < 0.83:
        file.unlink()
        file.mkdir()
    elif roll < 0.87:
        file.unlink()
        file.symlink_to(rng.choice([str(folder.parent / "elsewhere"), file.name, "/dev/null"]))
    elif roll < 0.92:
        _damage_checkpoints(folder / "checkpoints", rng)
    elif roll < 0.96:
        (file.parent / rng.choice(["extra.txt", "round-00009", "server.safetensors", ".x.tmp"])).write_bytes(
            b"x"
        )
    else:
        file.write_bytes(_reworded(file.read_bytes(), rng))


def _damage_checkpoints(folder: Path, rng: np.random.Generator) -> None:
    if not folder.is_dir():
        return
    found = sorted(folder.iterdir())
    roll = rng.integers(4)
    if roll == 0 and found:
        shutil.rmtree(found[rng.integers(len(found))])
    elif roll == 1 and found:
        shutil.copytree(found[-1], folder / "round-00007", symlinks=True)
    elif roll == 2 and len(found) > 1:
        os.rename(found[0], folder / f"x{len(found)}")
        os.rename(found[1], found[0])
    else:
        shutil.rmtree(folder)


def _reworded(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a text in which a digit, the likeliest thing to be changed by hand, is another one."""
    digits = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
    if not digits:
        return content
    place = digits[rng.integers(len(digits))]
    return content[:place] + bytes([48 + int(rng.integers(10))]) + content[place + 1 :]


# Benches ----------------------------------------------------------------------------------------------


def _bench(place: Place, bench: Bench, rng: np.random.Generator) -> Sequence[str] | Any:
    """Damage a cell of a bench that is done, or its tables, and run the bench again."""
    template, table = bench.once("bench", lambda: _bench_template(bench))
    folder = place.out / "bench"
    shutil.copytree(template, folder)
    _damage(folder, rng)
    file = bench.folder / "template-bench" / "in" / "bench.toml"
    outcome = place.run(bench.command, ["bench", file, "--quiet", "--out", folder], patience=WHOLE)
    if outcome.status == 0 and _table(folder) != table:
        return ["another table than the undamaged bench's"]
    return []


def _bench_template(bench: Bench) -> tuple[Path, str]:
    place = Place(bench.folder / "template-bench")
    write_data(place)
    scenario = tables(rounds=1)
    scenario["data"]["args"]["path"] = str(place.inputs / "small.npz")
    table = {
        "name": "b",
        "seeds": 1,
        "parallel": False,
        "scenario": scenario,
        "grid": {"fusion.strategy": ["local", "knfu"]},
    }
    file = place.inputs / "bench.toml"
    file.write_text(tomli_w.dumps(table), encoding="utf-8")
    done = place.run(bench.command, ["bench", file, "--quiet", "--out", place.out / "bench"], patience=WHOLE)
    assert done.status == 0, done
    return place.out / "bench", _table(place.out / "bench")


def _table(folder: Path) -> str:
    return (folder / "table.csv").read_text(encoding="utf-8")
