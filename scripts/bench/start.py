"""How long a run takes from the command to its first round, its results and its end.

    python scripts/bench/start.py [SCENARIO.toml] [--against PATH] [--repeats 5] [--set key=value …]

The command is run as a user runs it, in a process of its own, again and again. ``--against`` names another
source tree of fedkd, which takes turns with this one. Printed are medians and ranges of the seconds until
there is a first line, the first round and the results on the screen, and until the prompt is back; and of the
CPU seconds that all its processes, Ray's included, have used when the results are there. On a busy machine
only the latter mean anything. It needs Linux.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MARKS = {"round 1": "round ", "results": "results "}
COLUMNS = ("first line", *MARKS, "end", "CPU")


def measure(tree: Path, words: Sequence[str]) -> dict[str, float]:
    """Run the command once; return the seconds of every column."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedkd", "run", *words, "--out", f"{folder}/run"]
        begun = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(tree), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        found: dict[str, float] = {}
        for line in process.stdout:
            found.setdefault("first line", time.perf_counter() - begun)
            for name, start in MARKS.items():
                if line.startswith(start):
                    found.setdefault(name, time.perf_counter() - begun)
            if line.startswith(MARKS["results"]):
                found["CPU"] = _cpu(process.pid)
        if process.wait():
            raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
        found["end"] = time.perf_counter() - begun
    return found


def _cpu(root: int) -> float:
    """Return the CPU seconds of a process and of all that descend from it, ended ones included."""
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            ticks[int(folder.name)] = sum(map(int, words[11:15]))
            children.setdefault(int(words[1]), []).append(int(folder.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        total += ticks.get(process, 0)
        waiting += children.get(process, [])
    return total / os.sysconf("SC_CLK_TCK")


def row(name: str, runs: Sequence[Mapping[str, float]]) -> str:
    """Return medians and ranges of some runs as a row of a table."""
    cells = []
    for column in COLUMNS:
        values = sorted(run[column] for run in runs)
        cells.append(f"{statistics.median(values):.2f} ({values[0]:.2f}–{values[-1]:.2f})")
    return f"| {name} | {' | '.join(cells)} |"


def ratios(name: str, runs: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]]) -> str:
    """Return the medians of paired ratios as a row of a table."""
    pairs = list(zip(runs, others, strict=True))
    medians = [statistics.median(one[column] / other[column] for one, other in pairs) for column in COLUMNS]
    return f"| {name} | {' | '.join(f'{ratio:.2f}' for ratio in medians)} |"


def main() -> None:
    """Measure, and print a Markdown table."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument(
        "scenario", type=Path, nargs="?", default=REPOSITORY / "scenarios" / "quickstart.toml"
    )
    parser.add_argument("--against", type=Path, metavar="PATH", help="another source tree")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="key=value")
    args = parser.parse_args()
    trees = {"fedkd": REPOSITORY} | ({str(args.against): args.against.resolve()} if args.against else {})
    words = [str(args.scenario.resolve()), *(["--set", *args.set] if args.set else [])]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for repeat in range(args.repeats):
        order = list(trees) if repeat % 2 == 0 else list(trees)[::-1]
        for name in order:
            runs[name].append(measure(trees[name], words))
            print(f"{name}: {runs[name][-1]['end']:.1f} s", file=sys.stderr, flush=True)
    print(f"| {args.scenario.name}, s | {' | '.join(COLUMNS)} |")
    print(f"| --- |{' --: |' * len(COLUMNS)}")
    for name in trees:
        print(row(name, runs[name]))
    if args.against:
        print(ratios("ratio", runs["fedkd"], runs[str(args.against)]))


if __name__ == "__main__":
    main()
