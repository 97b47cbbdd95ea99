"""What the number of clients costs: rounds of 1,000 and of 10,000 clients at equal participation, and 1,000
at once.

    python scripts/bench/scale.py [--sizes 1000 100000] [--rounds 20] [--repeats 3] [--engine inline]
        [--live 500] [--short]
    python scripts/bench/scale.py --thousand [--rounds 3] [--repeats 3]

Every run is a process of its own, with its own Ray. Runs of the two sizes take turns, and round times are
compared pair by pair. Of a run are printed the seconds until its first round, the median seconds of a round
without the first one, from the end of a round to that of the next, checkpoints included, and the peak of the
memory of all its processes; what several of them share counts once, where Linux says so. The last run has
1,000 clients of KnFu take part in every round, and be evaluated. It needs nothing but the package.

With ``--thousand`` the 1,000 clients of KnFu have models and samples of the usual size: Fashion-MNIST, of
whose training images each has 59, and 10,000 test images. Printed is what the parts of a round take.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedkd.errors import told_in_one_line
from fedkd.simulation.runner import run
from fedkd.tracking.events import RoundReport, RunObserver

SIZES = (1_000, 10_000)
STRATEGIES: dict[str, dict[str, Any]] = {"FedAvg": {"strategy": "flwr:FedAvg"}, "KnFu": {"strategy": "knfu"}}
POLL_SECONDS = 1.0
PHASES = ("train", "fuse", "evaluate", "save")
MODELS: dict[str, dict[str, Any]] = {
    "MLP 784-200-10": {"model": "mlp", "args": {"hidden": [200]}},
    "LeNet": {"model": "lenet"},
}
CASES = ((1_000, 1_000), (200, 1_000), (1_000, 100), (200, 100))
"""Transfer samples, and clients that are evaluated."""


class Watch(RunObserver):
    """Takes down when each round was over."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.ended: list[float] = []

    def round_finished(self, report: RoundReport) -> None:
        """Take it down."""
        self.ended.append(time.perf_counter() - self.started)


def tables_of(
    words: argparse.Namespace, clients: int, fusion: dict[str, Any], sampled: int
) -> dict[str, Any]:
    """Return the scenario: clients that hold 20 digits each, the same ones however many clients there are."""
    engine = {"kind": words.engine} | ({} if words.live is None else {"live_clients": words.live})
    return {
        "name": "scale",
        "rounds": words.rounds,
        "clients_per_round": sampled,
        "evaluate_clients": sampled,
        "data": {
            "clients": clients,
            "partition": {"scheme": "dirichlet-per-client", "samples_per_client": 20, "replacement": True},
            "transfer": {"size": 200},
            "test_size": 200,
        },
        "clients": [{"model": "mlp"}],
        "training": {"optimizer": "sgd", "lr": 0.05, "batch_size": 8, "local_epochs": 2},
        "fusion": fusion,
        "engine": engine,
    }


def usual_tables(
    words: argparse.Namespace, model: dict[str, Any], transfer: int, evaluated: int
) -> dict[str, Any]:
    """Return the scenario: 1,000 clients of KnFu that share the images of Fashion-MNIST."""
    return {
        "name": "thousand",
        "rounds": min(words.rounds, 3),
        "evaluate_clients": evaluated,
        "data": {
            "dataset": "fashion-mnist",
            "clients": SIZES[0],
            "partition": {"scheme": "dirichlet-per-client", "alpha": 0.5, "samples_per_client": 59},
            "transfer": {"size": transfer},
        },
        "clients": [model],
        "training": {"optimizer": "sgd", "lr": 0.05, "batch_size": 32},
        "fusion": STRATEGIES["KnFu"],
        "engine": {"kind": words.engine},
    }


def one_run(tables: dict[str, Any]) -> None:
    """Run a scenario in this process, and print when its rounds were over, and what their parts took."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        run(tables, out=Path(folder) / "run", observers=[watch])
        lines = (Path(folder) / "run" / "timings.jsonl").read_text().splitlines()
    timings = [json.loads(line) for line in lines]
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"ended": watch.ended, "timings": timings, "driver": driver}))


@dataclass(frozen=True)
class Measured:
    """What a run took.

    Attributes:
        ended: Seconds from its start to the end of each round.
        timings: Of the parts of rounds, as in the run folder.
        peak: GB of memory of all its processes at once.
        driver: GB of memory of the process that started it.
    """

    ended: list[float]
    timings: list[dict[str, Any]]
    peak: float
    driver: float = 0.0

    @property
    def round(self) -> float:
        """Median seconds of a round, without the first, in which processes get going."""
        return statistics.median([after - before for before, after in pairwise(self.ended)] or self.ended)

    def seconds_of(self, phase: str) -> float:
        """Return the median seconds of a part of a round, without the first one."""
        taken = [part["seconds"] for part in self.timings if part["phase"] == phase]
        return statistics.median(taken[1:] or taken)


def measured(tables: dict[str, Any]) -> Measured:
    """Run a scenario in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(tables)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = 0
        try:
            while process.poll() is None:
                peak = max(peak, sum(map(memory_of, family_of(process.pid))))
                time.sleep(POLL_SECONDS)
        finally:
            process.terminate()
        assert process.stdout is not None
        told = process.stdout.read()
    if process.returncode < 0:
        raise SystemExit(f"a run was ended by signal {-process.returncode}")
    if process.returncode > 0:  # it has told why
        raise SystemExit(process.returncode)
    return Measured(**json.loads(told.strip().splitlines()[-1]), peak=peak / 1e9)


def family_of(process: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    found = [process]
    for member in found:
        found += children.get(member, [])
    return found


def memory_of(process: int) -> int:
    """Return the bytes of a process's memory, its part of what it shares with others."""
    for name, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        with suppress(OSError):
            for line in Path(f"/proc/{process}/{name}").read_text().splitlines():
                if line.startswith(key):
                    return 1024 * int(line.split()[1])
    return 0


def row(*cells: object) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def compare_sizes(words: argparse.Namespace) -> None:
    """Print what rounds of few and of many clients take, and their ratio, for every strategy."""
    row(
        "strategy",
        "clients",
        "first round after",
        "round",
        "peak memory",
        "driver's",
        "times the round of the fewest",
    )
    row("---", *["--:"] * 6)
    for name, fusion in STRATEGIES.items():
        found: dict[int, list[Measured]] = {size: [] for size in words.sizes}
        for repeat in range(words.repeats):
            for size in words.sizes if repeat % 2 == 0 else words.sizes[::-1]:
                found[size].append(measured(tables_of(words, size, fusion, words.sampled)))
        fewest = [one.round for one in found[words.sizes[0]]]
        for size, runs in found.items():
            rounds = [one.round for one in runs]
            ratios = [own / few for own, few in zip(rounds, fewest, strict=True)]
            row(
                name,
                f"{size:,}",
                f"{statistics.median([one.ended[0] for one in runs]):.1f} s",
                f"{statistics.median(rounds):.2f} s",
                f"{max(one.peak for one in runs):.2f} GB",
                f"{max(one.driver for one in runs):.2f} GB",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            )


def all_at_once(words: argparse.Namespace) -> None:
    """Print what a round takes in which all of many KnFu clients take part and are evaluated."""
    clients = words.sizes[0]
    words.rounds = min(words.rounds, 3)
    found = measured(tables_of(words, clients, STRATEGIES["KnFu"], clients))
    print(f"\n{clients:,} clients of KnFu, all of them in every round and evaluated:\n")
    row("first round after", "round", "peak memory")
    row("--:", "--:", "--:")
    row(f"{found.ended[0]:.1f} s", f"{found.round:.1f} s", f"{found.peak:.2f} GB")


def a_thousand(words: argparse.Namespace) -> None:
    """Print what the parts of a round take in which 1,000 KnFu clients of the usual size take part."""
    row("model", "transfer samples", "clients evaluated", "round", *PHASES, "peak memory")
    row("---", *["--:"] * (4 + len(PHASES)))
    for name, model in MODELS.items():
        for transfer, evaluated in CASES:
            runs = [measured(usual_tables(words, model, transfer, evaluated)) for _ in range(words.repeats)]
            rounds = [one.round for one in runs]
            extent = f" ({min(rounds):.1f} to {max(rounds):.1f})" if len(rounds) > 1 else ""
            row(
                name,
                f"{transfer:,}",
                f"{evaluated:,}",
                f"{statistics.median(rounds):.1f} s{extent}",
                *(f"{statistics.median(one.seconds_of(phase) for one in runs):.1f} s" for phase in PHASES),
                f"{max(one.peak for one in runs):.2f} GB",
            )


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of clients")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sampled", type=int, default=100, help="clients that take part in a round")
    parser.add_argument("--engine", choices=("ray", "inline"), default="ray")
    parser.add_argument("--live", type=int, help="engine.live_clients; absent: its default")
    parser.add_argument("--short", action="store_true", help="few clients and rounds, to see that it works")
    parser.add_argument("--thousand", action="store_true", help="1,000 clients of KnFu of the usual size")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.one is not None:
        return one_run(json.loads(words.one))
    if words.short:
        words.sizes, words.sampled, words.rounds, words.repeats = words.sizes or (20, 100), 10, 2, 1
    words.sizes = words.sizes or SIZES
    engine = f"{words.engine}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    if words.thousand:
        print(f"{SIZES[0]:,} clients of KnFu, medians of {words.repeats} runs; {engine}\n")
        return a_thousand(words)
    print(f"{words.sampled} clients a round, {words.rounds} rounds, {words.repeats} runs of each; {engine}\n")
    compare_sizes(words)
    all_at_once(words)


if __name__ == "__main__":
    with told_in_one_line():
        main()
