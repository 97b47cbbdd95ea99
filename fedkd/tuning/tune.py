"""Search for hyper-parameters from Python: the command line does nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.benchmark.cell_check import CellCheck
from fedkd.benchmark.cells import level_of
from fedkd.benchmark.finished import damage
from fedkd.benchmark.scheduler import GO_ON, Job, Watcher, Work, on_ray, run_in_turn
from fedkd.errors import Interrupted, RunFailed, UserError
from fedkd.paths import expanded
from fedkd.run_folder import disk_told, locked
from fedkd.scenario.toml import NotToml, parse_toml
from fedkd.tracking.atomic import write_text_atomically
from fedkd.tracking.folder import SCENARIO, TUNE
from fedkd.tracking.wording import percent
from fedkd.tuning.results import BEST, SHOWN, legend, markdown_table, write_results
from fedkd.tuning.sampling import check_optuna, draw
from fedkd.tuning.schema import Search, dump_search, load_search
from fedkd.tuning.trial import TRIAL, Rule, TrialRecord, read_record, run_trial
from fedkd.tuning.trials import Trial, TrialRun, base_values, best_of, check_space, ended, runs_of, single

if TYPE_CHECKING:
    from fedkd.benchmark.progress import BenchProgress
    from fedkd.benchmark.worker import Outcome

MAY_GROW = ("trials", "parallel")
"""Keys of a search that may change from one call to the next."""
Runner = Callable[[Sequence[Job], Watcher, Work], "dict[int, Outcome]"]


@dataclass(frozen=True)
class TunePlan:
    """A search that is known to be sound.

    Attributes:
        search: Its file.
        folder: Where everything goes.
        first: Values of the base, which are the first trial; None: they are not among those searched.
    """

    search: Search
    folder: Path
    first: Mapping[str, Any] | None

    @property
    def runs(self) -> Path:
        """The folder of the run folders."""
        return self.folder / "runs"


@dataclass(frozen=True)
class TuneResult:
    """A search that has run.

    Attributes:
        folder: Holds `best.toml`, `table.md`, `trials.csv`, `search.json`, `tune.toml` and `runs/`.
        trials: All of them, in order.
        best: The one that reached most.
        search: What was searched.
    """

    folder: Path
    trials: tuple[Trial, ...]
    best: Trial
    search: Search

    @property
    def scenario(self) -> Path:
        """The file of the scenario that was found: `fedkd.run` takes it."""
        return self.folder / BEST

    def table(self, most: int | None = None) -> str:
        """Return the trials as a table in Markdown, the best first, `most` of them."""
        return f"{markdown_table(self.search, self.trials, most)}\n{legend(self.search)}"

    def __repr__(self) -> str:
        values = ", ".join(f"{key}={word}" for key, word in single(self.best.values).items())
        return f"<TuneResult {values}: {percent(self.best.value)}, {self.folder}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the table with its legend, and where everything is."""
        from fedkd.tracking.html import from_markdown

        return from_markdown(f"{self.table(SHOWN)}\nresults {self.folder}")


def plan_tune(
    path: str | Path,
    overrides: Sequence[str] = (),
    search: Mapping[str, Any] | Sequence[str] = (),
    out: str | Path | None = None,
) -> TunePlan:
    """Read a search and try what can be tried without running; nothing runs.

    Args:
        path: The file of a search, or a scenario.
        overrides: ``key=value`` texts of ``--set``.
        search: More to vary, as texts of ``--search`` or as a table.
        out: Folder of the search; absent: ``runs/tune-NAME``.

    Raises:
        UserError: The first thing that is wrong, or the folder holds another search.
    """
    check_optuna()
    read = load_search(path, overrides, search)
    check_space(read)
    folder = Path(out) if out is not None else Path("runs") / f"tune-{read.spec.name}"
    plan = TunePlan(read, expanded(folder, key="--out").absolute(), base_values(read))
    runs_of(read, 0, plan.first or {})
    _check_folder(plan)
    return plan


def tune(
    path: str | Path,
    *,
    search: Mapping[str, Any] | Sequence[str] = (),
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    quiet: bool = True,
) -> TuneResult:
    """Search for the hyper-parameters with the highest accuracy on held-out samples.

    The same call goes on where one was stopped, and with more `trials` where one had ended.

    Args:
        path: The file of a search, or a scenario or the name of a shipped one.
        search: What to vary, besides what the file says: scenario key to ``{"low": 1e-4, "high": 1e-1, "log":
            True}`` or to a list of values; or texts as ``--search`` takes them.
        out: Folder of the search; absent: ``runs/tune-NAME``. On a cluster, all nodes must see it.
        overrides: ``key=value`` texts of ``--set``, of the search (``trials=50``) or the scenario.
        quiet: Show no progress.

    Raises:
        UserError: The search cannot be run as it is; nothing has run.
        RunFailed: A trial failed otherwise than by diverging, or none reached its end.
        Interrupted: Stopped by a signal; the same call goes on.
    """
    from fedkd.benchmark.progress import make_bench_progress

    plan = plan_tune(path, overrides, search, out)
    try:
        plan.runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {plan.folder}: {error.strerror}", key="--out") from error
    spec = plan.search.spec
    with locked(plan.folder), disk_told(plan.folder, lambda: f"make room; {GO_ON}"):
        write_text_atomically(plan.folder / TUNE, dump_search(plan.search))
        total = spec.trials * len(plan.search.seeds)
        progress = make_bench_progress([], 0, (), quiet=quiet, unknown=total)
        try:
            progress.message(f"{spec.name}: {spec.trials} trials → {plan.folder}")
            trials = _Trials(plan, progress).run()
        except KeyboardInterrupt:
            raise Interrupted(f"stopped with {progress.counts()}; go on with the same command") from None
        finally:
            progress.closed()
        write_results(plan.search, trials, plan.folder)
    best = best_of(trials)
    if best is None:
        raise RunFailed(f"none of {len(trials)} trials reached its end, see {plan.folder / 'trials.csv'}")
    return TuneResult(plan.folder, tuple(trials), best, plan.search)


class _Trials:
    """The trials of a search, batch after batch."""

    def __init__(self, plan: TunePlan, progress: BenchProgress) -> None:
        self._plan = plan
        self._progress = progress
        self._check = CellCheck(plan.search.bench.file, progress.message)
        self._trials: list[Trial] = []
        self._curves: dict[int, list[Mapping[int, float]]] = {}
        self._runner: Runner | None = None

    def run(self) -> list[Trial]:
        """Run what has not run, and return all trials."""
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
        spec = self._plan.search.spec
        with self._runners() as start:
            for batch, first in enumerate(range(0, spec.trials, spec.together)):
                self._run_batch(batch, first, min(spec.together, spec.trials - first), start)
        return self._trials

    @contextmanager
    def _runners(self) -> Iterator[Callable[[TrialRun], Runner]]:
        """Yield what starts Ray when the first trial wants it, and have it stopped after the block."""
        from contextlib import ExitStack

        with ExitStack() as stack:

            def start(run: TrialRun) -> Runner:
                if not self._plan.search.spec.parallel:
                    return run_in_turn
                return stack.enter_context(on_ray(run.scenario.engine, self._progress)).run

            yield start

    def _run_batch(self, batch: int, first: int, number: int, start: Callable[[TrialRun], Runner]) -> None:
        values = self._values(batch, number)
        trials = [
            (first + n, own, runs_of(self._plan.search, first + n, own)) for n, own in enumerate(values)
        ]
        runs = {run.hash: run for _, _, of_trial in trials for run in of_trial}  # two may try the same
        waiting = [run for run in runs.values() if self._record(run) is None]
        self._progress.add(waiting, sum(len(of_trial) for _, _, of_trial in trials))
        if waiting:
            self._run_runs(waiting, start)
        for trial, own, of_trial in trials:
            found = [(self._folder(run), self._record(run)) for run in of_trial]
            known = [(path, record) for path, record in found if record is not None]
            assert len(known) == len(found)
            self._trials.append(ended(trial, own, known))
        for run in runs.values():
            record = self._record(run)
            if record is not None and record.status == "done":
                self._curves.setdefault(run.seed, []).append(record.curve)
        best = best_of(self._trials)
        if waiting and best is not None:
            told = ", ".join(f"{key}={word}" for key, word in single(best.values).items())
            self._progress.message(f"best so far: {percent(best.value)}, trial {best.number}: {told}")

    def _values(self, batch: int, number: int) -> list[Mapping[str, Any]]:
        """Return the values of a batch's trials; the very first are the base's own."""
        search = self._plan.search
        own = [self._plan.first] if batch == 0 and self._plan.first is not None else []
        drawn = draw(
            search.space,
            [trial.told for trial in self._trials],
            number - len(own),
            sampler=search.spec.sampler,
            startup=search.spec.startup,
            seed=search.seeds[0],
            batch=batch,
        )
        return [*own, *drawn]

    def _run_runs(self, waiting: Sequence[TrialRun], start: Callable[[TrialRun], Runner]) -> None:
        spec = self._plan.search.spec
        self._check.check(waiting)
        for run in waiting:
            _clear_damaged(self._folder(run), run, self._progress.message)
        if self._runner is None:
            self._runner = start(waiting[0])
        known = {seed: tuple(curves) for seed, curves in self._curves.items()}
        rule = Rule(spec.metric, spec.pruner != "none", max(1, spec.startup), spec.warmup, known)
        jobs = [(run.scenario.model_dump_json(), str(self._folder(run))) for run in waiting]
        offset = len(self._progress.cells) - len(waiting)
        watcher = _Numbered(self._progress, offset)
        outcomes = self._runner(jobs, watcher, partial(run_trial, rule))
        if len(outcomes) < len(jobs) or any(outcome.status == "interrupted" for outcome in outcomes.values()):
            raise KeyboardInterrupt
        for job, outcome in sorted(outcomes.items()):
            if outcome.status == "failed" and not outcome.diverged:
                raise RunFailed(
                    f"{waiting[job].label}: {outcome.error}; nothing is known of what comes after, the same"
                    " command tries it again"
                )

    def _folder(self, run: TrialRun) -> Path:
        return self._plan.runs / run.folder_name

    def _record(self, run: TrialRun) -> TrialRecord | None:
        return read_record(self._folder(run))


class _Numbered(Watcher):
    """Tells a display of jobs whose numbers begin anew with every batch."""

    def __init__(self, progress: Watcher, offset: int) -> None:
        self._progress = progress
        self._offset = offset

    def slots(self, count: int) -> None:
        self._progress.slots(count)

    def started(self, job: int) -> None:
        self._progress.started(self._offset + job)

    def finished(self, job: int, outcome: Outcome) -> None:
        self._progress.finished(self._offset + job, outcome)

    def message(self, text: str) -> None:
        self._progress.message(text)


def _clear_damaged(folder: Path, run: TrialRun, tell: Callable[[str], None]) -> None:
    """Have a run begin anew that had ended, and whose files are not what was written."""
    reason = damage(folder)
    if reason is None and (folder / TRIAL).exists():
        reason = f"{TRIAL} is not what was written"
    if reason is not None:
        tell(f"{run.label} is damaged and runs anew: {reason} (runs/{folder.name})")
        shutil.rmtree(folder)


def _check_folder(plan: TunePlan) -> None:
    """Refuse a folder that holds another search, whose tables would be written over.

    Raises:
        UserError: What is different, and the way on.
    """
    path = plan.folder / TUNE
    try:
        before = parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any((plan.folder / name).exists() for name in (SCENARIO, "bench.toml", "cells.csv")):
            raise UserError(f"{plan.folder} holds something else; choose another", key="--out") from None
        return
    except (OSError, UnicodeDecodeError, NotToml):
        raise UserError("cannot be read; choose another folder with --out", file=str(path)) from None
    now = parse_toml(dump_search(plan.search))
    changed = [
        key
        for key in dict.fromkeys([*before, *now])
        if key not in MAY_GROW and before.get(key) != now.get(key)
    ]
    if changed:
        verb = "was" if len(changed) == 1 else "were"
        told = f"{plan.folder} holds another search: {', '.join(changed)} {verb} different"
        raise UserError(f"{told}; choose another folder with --out", key="--out")


def describe_tune(plan: TunePlan) -> Iterator[str]:
    """Yield what ``--dry-run`` prints: what varies, how many trials, and the first of them."""
    search, spec = plan.search, plan.search.spec
    for dimension in search.space:
        choices = (level_of(dimension.key, choice).label for choice in dimension.choices)
        yield f"search   {dimension.key}: {' | '.join(choices) or dimension.range_words()}"
    share = 100 * search.bench.fixed["data.validation"]
    yield f"metric   {spec.metric}, {share:g} % of training samples held out"
    seeds = ", ".join(map(str, search.seeds))
    yield f"trials   {spec.trials}, {spec.together} at a time by {spec.sampler} → {plan.folder}"
    yield f"seeds    {seeds}"
    yield f"pruner   {spec.pruner}" + f", once {spec.startup} runs are known" * (spec.pruner != "none")
    if plan.first is not None:
        yield f"first    the base: {', '.join(f'{key}={word}' for key, word in single(plan.first).items())}"
    else:
        yield "first    drawn: the base's values are not among those that are searched"
