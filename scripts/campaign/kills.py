"""Cases that are killed, stopped or out of disk at any moment, and then gone on with."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from campaign.base import Bench, stream_tables, tables, write_scenario
from campaign.sandbox import WHOLE, Outcome, Place, Stop
from campaign.verdict import complaints

ROOM_TO_COMPLAIN = 1500
"""Bytes that a file may have at least: what is complained about goes into one too."""
RESUMED = 4
"""Times that a run is gone on with before it has to be done."""


@dataclass(frozen=True)
class Whole:
    """A run that nobody disturbed.

    Attributes:
        metrics: Its `metrics.jsonl`.
        seconds: How long it took.
        largest: Bytes of its largest file.
    """

    metrics: bytes
    seconds: float
    largest: int


def scenarios() -> dict[str, dict]:
    """Return the scenarios that are disturbed, by name."""
    kept = tables(rounds=3, checkpoint_every=2)
    kept["training"]["optimizer_state"] = "kept"
    mixed = tables(rounds=3, fusion={"strategy": "scarlet"}, faults={"dropout": 0.3})
    mixed["clients"][1] = {"model": "sgd"}
    return {"kept": kept, "mixed": mixed, "stream": stream_tables("er")}


def whole(bench: Bench, name: str) -> Whole:
    """Return the undisturbed run of a scenario."""

    def make() -> Whole:
        place = Place(bench.folder / f"whole-{name}")
        path = write_scenario(place, scenarios()[name])
        done = place.run(bench.command, ["run", path, "--quiet", "--out", place.out / "run"], patience=WHOLE)
        assert done.status == 0, done
        files = [file.stat().st_size for file in (place.out / "run").rglob("*") if file.is_file()]
        found = Whole((place.out / "run" / "metrics.jsonl").read_bytes(), done.seconds, max(files))
        place.remove()
        return found

    return bench.once(f"whole-{name}", make)


def attempt(place: Place, bench: Bench, rng: np.random.Generator) -> list[str]:
    """Disturb a run once or more, go on with it, and compare it with one that nobody disturbed."""
    name = str(rng.choice(list(scenarios())))
    unbroken = whole(bench, name)
    path = write_scenario(place, scenarios()[name])
    run = place.out / "run"
    words: list[object] = ["run", path, "--quiet", "--out", run]
    for disturbed in range(RESUMED):
        last = disturbed == RESUMED - 1 or rng.random() < 0.5 * (disturbed > 0)
        outcome, wrong = _go_on(place, bench, rng, words, unbroken, undisturbed=last)
        if wrong:
            return wrong
        if outcome.status == 0:
            break
        if last:
            return [f"it does not go on after {disturbed} disturbances"]
        words = ["resume", run, "--quiet"] if (run / "scenario.toml").exists() else words
    return _compared(run, unbroken)


def _go_on(
    place: Place,
    bench: Bench,
    rng: np.random.Generator,
    words: list[object],
    unbroken: Whole,
    *,
    undisturbed: bool,
) -> tuple[Outcome, list[str]]:
    """Run a command with a disturbance, or without; return how it ended and what was wrong with it."""
    if undisturbed:
        return place.run(bench.command, words, patience=WHOLE), []
    if rng.random() < 0.2:
        size = int(rng.integers(ROOM_TO_COMPLAIN, max(unbroken.largest, ROOM_TO_COMPLAIN) + 1))
        return place.run(bench.command, words, file_size=size), []
    number = int(rng.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM], p=[0.6, 0.25, 0.15]))
    outcome = place.run(bench.command, words, stop=Stop(rng.uniform(0, 1.2 * unbroken.seconds), number))
    place.outcomes.pop()  # it may have died of the signal, so it is judged here
    place.killed.append(outcome)
    return outcome, list(complaints(outcome, stopped_by=number))


def _compared(run: Path, unbroken: Whole) -> list[str]:
    wrong = []
    if (run / "metrics.jsonl").read_bytes() != unbroken.metrics:
        wrong.append("other metrics than the undisturbed run's")
    left = [str(file.relative_to(run)) for file in run.rglob("*") if file.name.endswith((".tmp", ".partial"))]
    if left:
        wrong.append(f"left half-written: {', '.join(left)}")
    return wrong
