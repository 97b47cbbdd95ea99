"""The campaign: cases drawn from a seed, run by some processes, counted and told of."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np

from campaign import folders, inputs, kills, plugins, rows
from campaign.base import Bench
from campaign.sandbox import Command, Outcome, Place
from campaign.verdict import complaints

KINDS: dict[str, tuple[float, Callable[[Place, Bench, np.random.Generator], Sequence[str] | None]]] = {
    "inputs": (0.45, inputs.attempt),
    "folders": (0.15, folders.attempt),
    "kills": (0.08, kills.attempt),
    "plugins": (0.22, plugins.attempt),
    "rows": (0.10, rows.attempt),
}
"""Of every kind of case its share, and what makes one; it returns what is wrong besides the rules for all."""
MEMORY = "/dev/shm"  # noqa: S108  a file system in memory, where there is one
TOLD_EVERY = 500


@dataclass(frozen=True)
class Finding:
    """A case that broke a rule.

    Attributes:
        seed: Of the campaign.
        index: Of the case.
        kind: Of the case.
        wrong: What it did.
        words: The command that did it, as the user would type it.
        said: What it said.
    """

    seed: int
    index: int
    kind: str
    wrong: str
    words: str
    said: str

    def __str__(self) -> str:
        said = self.said if len(self.said) < 600 else f"{self.said[:300]} … {self.said[-300:]}"
        return (
            f"{self.kind} {self.index}: {self.wrong}\n  fedkd {self.words}\n  {said.strip()!r}\n"
            f"  again: python scripts/fuzz.py --seed {self.seed} --case {self.index}" + f" --only {self.kind}"
        )


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        seed: Of the campaign.
        index: Within it.
        only: The only kind of case that there is; None: all kinds.
    """

    seed: int
    index: int
    only: str | None = None

    def attempt(self, bench: Bench) -> Attempt:
        """Run it."""
        rng = np.random.default_rng([self.seed, self.index])
        shares = np.array([share for share, _ in KINDS.values()])
        drawn = list(KINDS)[rng.choice(len(KINDS), p=shares / shares.sum())]
        kind = self.only or drawn
        place = Place(bench.folder / f"case-{self.index}")
        try:
            wrong = list(KINDS[kind][1](place, bench, rng) or ())
        except Exception:  # of the campaign itself, and no reason to end it
            wrong = [f"the case could not be made: {traceback.format_exc()}"]
        outcomes = list(place.outcomes)
        last = (place.killed or outcomes or [None])[-1]
        found = [self._finding(kind, text, last) for text in wrong]
        for outcome in outcomes:
            found += [self._finding(kind, text, outcome) for text in complaints(outcome)]
        return kind, [*outcomes, *place.killed], found

    def _finding(self, kind: str, wrong: str, outcome: Outcome | None) -> Finding:
        words = "" if outcome is None else " ".join(outcome.words)
        return Finding(self.seed, self.index, kind, wrong, words, "" if outcome is None else outcome.stderr)

    def forget(self, bench: Bench) -> None:
        """Remove its files."""
        shutil.rmtree(bench.folder / f"case-{self.index}", ignore_errors=True)


Attempt = tuple[str, list[Outcome], list[Finding]]
"""The kind of a case, how its commands ended, and what was wrong."""


@dataclass
class Count:
    """What has been counted so far."""

    cases: Counter[str]
    commands: Counter[int]
    seconds: Counter[str]
    findings: list[Finding]

    def __str__(self) -> str:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.cases.items()))
        statuses = ", ".join(f"{status}: {number:,}" for status, number in sorted(self.commands.items()))
        return (
            f"{self.cases.total():,} cases ({kinds}); {self.commands.total():,} commands by exit status"
            f" ({statuses}); {len(self.findings)} findings"
        )


def attempt_all(
    cases: Sequence[Case], command: Command, folder: Path, *, keep: bool = False
) -> Iterator[Attempt]:
    """Run cases one after the other, and yield what `Case.attempt` returns."""
    bench = Bench(command, folder)
    for case in cases:
        found = case.attempt(bench)
        yield found
        if not (keep and found[2]):
            case.forget(bench)


def _add(count: Count, kind: str, outcomes: Sequence[Outcome], findings: Sequence[Finding]) -> None:
    count.cases[kind] += 1
    count.commands.update(outcome.status for outcome in outcomes)
    count.seconds[kind] += sum(outcome.seconds for outcome in outcomes)
    count.findings.extend(findings)


def warm_up(command: Command, folder: Path) -> None:
    """Import what cases need, so that their forks need not."""
    import sklearn.datasets
    import sklearn.ensemble
    import sklearn.linear_model  # noqa: F401
    import torch

    from campaign.base import stream_tables, tables, write_scenario

    torch.set_num_threads(1)
    for name, scenario in (("one", tables(rounds=1)), ("stream", stream_tables("ewc"))):
        place = Place(folder / f"warm-{name}")
        path = write_scenario(place, scenario)
        command(["run", str(path), "--quiet", "--out", str(place.out / "run")])


def _results(options: argparse.Namespace, folder: Path) -> Iterator[Attempt]:
    """Run all cases in as many processes as are asked for; yield their results as they come."""
    if options.jobs == 1:
        yield from _attempts(0, options, folder)
        return
    context = get_context("fork")
    results = context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(first, options, folder, results)) for first in range(options.jobs)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        yield from iter(results.get, None)


def _work(first: int, options: argparse.Namespace, folder: Path, results: SimpleQueue) -> None:
    try:
        for found in _attempts(first, options, folder):
            results.put(found)
    finally:
        results.put(None)


def _attempts(first: int, options: argparse.Namespace, folder: Path) -> Iterator[Attempt]:
    from fedkd.cli.main import main as fedkd

    cases = _cases(options)[first :: options.jobs]
    return attempt_all(cases, fedkd, folder / f"worker-{first}", keep=bool(options.keep))


def _cases(options: argparse.Namespace) -> list[Case]:
    indices = range(options.cases) if options.case is None else [options.case]
    return [Case(options.seed, index, options.only) for index in indices]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a campaign; return 1 if a case broke a rule."""
    parser = argparse.ArgumentParser(prog="fuzz.py", description="Thousands of hostile cases against fedkd.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--case", type=int, help="this one alone, told in full")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the folders of cases that broke a rule"
    )
    options = parser.parse_args(argv)
    if options.case is not None:
        options.jobs = 1
    # In memory where that can be: what is written durably need not wait for a disk.
    fast = MEMORY if os.access(MEMORY, os.W_OK) else None
    folder = Path(options.keep or tempfile.mkdtemp(prefix="fuzz-", dir=fast)).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    from fedkd.cli.main import main as fedkd

    warm_up(fedkd, folder / "warm")
    began, count = time.monotonic(), Count(Counter(), Counter(), Counter(), [])
    for found in _results(options, folder):
        _add(count, *found)
        for finding in found[2]:
            print(finding, flush=True)
        if options.case is not None:
            for outcome in found[1]:
                print(f"fedkd {' '.join(outcome.words)!r}\n{outcome}\n")
        if count.cases.total() % TOLD_EVERY == 0:
            print(f"{time.monotonic() - began:.0f} s  {count}", flush=True)
    spent = time.monotonic() - began
    print(f"{count}\nin {spent:.0f} s on {options.jobs} processes")
    print(
        ", ".join(f"{kind} {s / max(count.cases[kind], 1):.2f} s a case" for kind, s in count.seconds.items())
    )
    if not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.flush()
    return int(bool(count.findings))
