"""What a round of KnFu costs besides the arithmetic of its clients.

    python scripts/bench/knfu_overhead.py [--clients 100] [--rounds 6] [--samples 590] [--strategy knfu]
                                          [--engine ray] [--no-checkpoints]

MNIST, LeNets with an equal part of the training images each, M = 1,000 transfer samples, Adam, batches of
32, one epoch of training and one of distillation. Nobody is evaluated but in the last round, which does not
count. On the inline engine all is one process, whose processor time is told apart: training and distillation
steps with what leads up to them, predictions on the transfer set, and all the rest, which is the overhead:
messages, fusion, guidance on its way, clients' bookkeeping, figures and checkpoints. With ``--engine ray`` it
is told by the phases that fedkd records, in seconds of a clock: what actors have spent on clients, and what
is left of the round, times when an actor had nothing to do included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedkd.clients.local import network_trainer as torch_client
from fedkd.errors import told_in_one_line
from fedkd.simulation.runner import run
from fedkd.tracking.events import RoundReport, RunObserver
from fedkd.tracking.recorder import read_timings
from fedkd.training import executor

STEPS, PREDICTIONS, WHOLE = "steps", "predictions", "whole round"


class Watch(RunObserver):
    """Takes down what each round has taken, from its end to the end of the next, checkpoints included."""

    def __init__(self) -> None:
        self.taken: dict[str, float] = defaultdict(float)
        self.rounds: list[dict[str, float]] = []
        self.worked: dict[int, float] = defaultdict(float)
        self._begun = time.process_time()

    def answered(self, round: int, phase: str, client: int, seconds: float) -> None:
        """Take down what a client's actor has spent on it."""
        self.worked[round] += seconds

    def round_finished(self, report: RoundReport) -> None:
        """Take down the processor time of a round."""
        now = time.process_time()
        self.rounds.append({**self.taken, WHOLE: now - self._begun})
        parts = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in self.rounds[-1].items())
        print(f"round {report.round}, processor time: {parts}", file=sys.stderr, flush=True)
        self.taken.clear()
        self._begun = now

    def timed(self, what: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, and takes down its processor time."""

        def done(*args: Any, **kwargs: Any) -> Any:
            begun = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                self.taken[what] += time.process_time() - begun

        return done


def tables_of(words: argparse.Namespace) -> dict[str, Any]:
    """Return the scenario."""
    return {
        "name": "overhead",
        "rounds": words.rounds,
        "evaluate_every": words.rounds,
        "checkpoint_every": words.rounds if words.no_checkpoints else 1,
        "data": {
            "dataset": words.dataset,
            "clients": words.clients,
            "partition": {"scheme": "iid", "samples_per_client": words.samples},
            "transfer": {"size": words.transfer},
            "test_size": 200,
            "test_fraction": 0.0,
        },
        "clients": [{"model": "lenet"}],
        "training": {"optimizer": "adam", "lr": 1e-3, "batch_size": 32},
        "fusion": {"strategy": words.strategy},
        "engine": {"kind": words.engine},
    }


def inside(watch: Watch, counted: range) -> None:
    """Print the parts of a round's processor time."""
    print("| part of a round | s | share (%) |")
    print("| --- | --: | --: |")
    rounds = [watch.rounds[place] for place in counted]
    rest = [{**one, "overhead": one[WHOLE] - one[STEPS] - one[PREDICTIONS]} for one in rounds]
    for part in (STEPS, PREDICTIONS, "overhead", WHOLE):
        shares = sorted(100 * one[part] / one[WHOLE] for one in rest)
        seconds = statistics.median(one[part] for one in rest)
        print(
            f"| {part} | {seconds:.3f} | {statistics.median(shares):.1f} ({shares[0]:.1f}–{shares[-1]:.1f}) |"
        )


def by_phase(watch: Watch, folder: Path, counted: range) -> None:
    """Print what the phases of a round took, by the clock, and what clients' work was of it."""
    phases: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for timing in read_timings(folder):
        phases[timing["phase"]][timing["round"]] += timing["seconds"]
    numbers = [place + 1 for place in counted]
    print("\n| phase | s (by the clock) |")
    print("| --- | --: |")
    for phase, seconds in phases.items():
        if any(round in seconds for round in numbers):
            print(f"| {phase} | {statistics.median(seconds[round] for round in numbers):.3f} |")
    worked = statistics.median(watch.worked[round] for round in numbers)
    print(f"| clients' work, of all actors together | {worked:.3f} |")


def main() -> None:
    """Run, and print the tables."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=6, help="the first and the last do not count")
    parser.add_argument("--samples", type=int, default=590, help="of each client")
    parser.add_argument("--transfer", type=int, default=1000, help="transfer samples M")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--strategy", default="knfu")
    parser.add_argument("--engine", choices=["inline", "ray"], default="inline")
    parser.add_argument("--no-checkpoints", action="store_true", help="none but after the last round")
    words = parser.parse_args()
    if words.rounds < 3:
        parser.error("--rounds: there have to be 3, of which the first and the last do not count")
    watch = Watch()
    executor.LoopExecutor.run = watch.timed(STEPS, executor.LoopExecutor.run)  # type: ignore[method-assign]
    for name in ("predict_logits", "predict_in_batches"):
        setattr(torch_client, name, watch.timed(PREDICTIONS, getattr(torch_client, name)))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        run(tables_of(words), out=folder, observers=[watch])
        counted = range(1, words.rounds - 1)
        if words.engine == "inline":
            inside(watch, counted)
        by_phase(watch, folder, counted)


if __name__ == "__main__":
    with told_in_one_line():
        main()
