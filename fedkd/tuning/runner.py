"""Searches for hyper-parameters, for Python and for the command line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedkd.benchmark import Basis, Scheduler, find_damage, make_bench_progress, make_level, open_scheduler
from fedkd.errors import RunFailed, UserError
from fedkd.plugins import require_package
from fedkd.scenario import InvalidToml, parse_toml
from fedkd.storage import expand_path
from fedkd.tracking import SCENARIO_FILE, TUNE_FILE, format_percent, markdown_to_html
from fedkd.tuning.results import BEST, MAX_TABLE_TRIALS, legend, markdown_table, write_results
from fedkd.tuning.sampling import draw
from fedkd.tuning.schema import Search, dump_search, load_search
from fedkd.tuning.trials import (
    TRIAL,
    Rule,
    Trial,
    base_values,
    best_of,
    check_space,
    in_words,
    make_trial,
    read_record,
    run_trial,
    runs_of,
)

CONFIDENCE = 0.9  # of the intervals of forecasts that stop runs
MAY_GROW = ("trials", "parallel")  # keys of a search that may change between calls


@dataclass(frozen=True)
class TunePlan:
    """A checked search; `first` has the base's values for the first trial; None: outside the search space."""

    search: Search
    folder: Path
    first: Mapping[str, Any] | None

    @property
    def runs(self) -> Path:
        """The folder of the run folders."""
        return self.folder / "runs"


@dataclass(frozen=True)
class TuneResult:
    """A search that has run; `best` is the trial with the highest value.

    The folder holds `best.toml`, `table.md`, `trials.csv`, `search.json`, `tune.toml` and `runs/`.
    """

    folder: Path
    trials: tuple[Trial, ...]
    best: Trial
    search: Search

    @property
    def scenario(self) -> Path:
        """The file of the scenario that was found, for `fedkd.run`."""
        return self.folder / BEST

    def table(self, most: int | None = None) -> str:
        """Return the trials as a table in Markdown, the best first, `most` of them."""
        return f"{markdown_table(self.search, self.trials, most)}\n{legend(self.search)}"

    def __repr__(self) -> str:
        return f"<TuneResult {in_words(self.best.values)}: {format_percent(self.best.value)}, {self.folder}>"

    def _repr_html_(self) -> str:
        return markdown_to_html(f"{self.table(MAX_TABLE_TRIALS)}\nresults {self.folder}")


def plan_tune(
    path: str | Path,
    overrides: Sequence[str] = (),
    search: Mapping[str, Any] | Sequence[str] = (),
    out: str | Path | None = None,
) -> TunePlan:
    """Read a search and check it, its folder too; nothing runs."""
    require_package("optuna", "fedkd tune", "tune")
    read = load_search(path, overrides, search)
    check_space(read)
    folder = Path(out) if out is not None else Path("runs") / f"tune-{read.spec.name}"
    plan = TunePlan(read, expand_path(folder, key="--out").absolute(), base_values(read))
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

    The same call resumes a search that was stopped; with more `trials`, also one that had ended.

    Args:
        path: The file of a search, or a scenario or the name of a shipped one.
        search: More keys to vary: scenario key to ``{"low": 1e-4, "high": 1e-1, "log": True}`` or to a list
            of values; or texts as ``--search`` takes them.
        out: Folder of the search; absent: ``runs/tune-NAME``. On a cluster, all nodes must see it.
        overrides: ``key=value`` texts of ``--set``, of the search (``trials=50``) or the scenario.

    Raises:
        UserError: The search has a mistake; nothing has run.
        RunFailed: A trial failed without diverging, or none reached its end.
        Interrupted: Stopped by a signal; the same call continues.
    """
    plan = plan_tune(path, overrides, search, out)
    spec, dumped = plan.search.spec, (TUNE_FILE, dump_search(plan.search))
    total = spec.trials * len(plan.search.seeds)
    display = partial(make_bench_progress, [], 0, quiet=quiet, unknown=total)
    with open_scheduler(plan.folder, plan.search.bench.file, dumped, spec.parallel, display) as scheduler:
        scheduler.progress.message(f"{spec.name}: {spec.trials} trials → {plan.folder}")
        trials = _run_trials(plan, scheduler)
        scheduler.close()
        write_results(plan.search, trials, plan.folder)
    best = best_of(trials)
    if best is None:
        raise RunFailed(f"none of {len(trials)} trials reached its end, see {plan.folder / 'trials.csv'}")
    return TuneResult(plan.folder, tuple(trials), best, plan.search)


def _run_trials(plan: TunePlan, scheduler: Scheduler) -> list[Trial]:
    """Run the trials that are not done, batch after batch; return all of them."""
    spec, tell = plan.search.spec, scheduler.progress.message
    trials: list[Trial] = []
    curves: dict[int, list[Mapping[int, float]]] = {}
    for batch, first in enumerate(range(0, spec.trials, spec.together)):
        base = [plan.first] if batch == 0 and plan.first is not None else []
        number = min(spec.together, spec.trials - first) - len(base)
        values: list[Mapping[str, Any]] = [*base, *draw(plan.search, trials, number, batch)]
        runs_of_trials = [runs_of(plan.search, n, own) for n, own in enumerate(values, start=first)]
        runs = {run.hash: run for runs in runs_of_trials for run in runs}  # two may try the same
        folders = {hash: plan.runs / run.folder_name for hash, run in runs.items()}
        waiting = [run for hash, run in runs.items() if read_record(folders[hash]) is None]
        scheduler.progress.add(waiting, sum(map(len, runs_of_trials)))
        if waiting:
            known = {seed: tuple(some) for seed, some in curves.items()}
            everything = [curve for some in curves.values() for curve in some]
            basis = Basis.of(everything, CONFIDENCE) if spec.pruner == "forecast" else None
            prunes, startup = spec.pruner != "none", max(1, spec.startup)
            rule = Rule(spec.metric, prunes, startup, spec.warmup, known, basis)
            outcomes = scheduler.run(waiting, partial(run_trial, rule), _damage)
            for run in waiting:
                if outcomes[run].status == "failed" and not outcomes[run].diverged:
                    told = "later trials depend on its result; the same command tries it again"
                    raise RunFailed(f"{run.label}: {outcomes[run].error}; {told}")
        records = {hash: read_record(folder) for hash, folder in folders.items()}
        for number, (own, of_trial) in enumerate(zip(values, runs_of_trials, strict=True), start=first):
            found = [(folders[run.hash], record) for run in of_trial if (record := records[run.hash])]
            assert len(found) == len(of_trial)
            trials.append(make_trial(number, own, found))
        for hash, record in records.items():
            if record is not None and record.status == "done":
                curves.setdefault(runs[hash].seed, []).append(record.curve)
        best = best_of(trials)
        if waiting and best is not None:
            tell(f"best so far: {format_percent(best.value)}, trial {best.number}: {in_words(best.values)}")
    return trials


def _damage(folder: Path) -> str | None:
    if (reason := find_damage(folder)) is not None:
        return reason
    return f"{TRIAL} is damaged" if (folder / TRIAL).exists() else None


def _check_folder(plan: TunePlan) -> None:
    """Refuse a folder of another search, to keep its tables."""
    path = plan.folder / TUNE_FILE
    try:
        before = parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any((plan.folder / name).exists() for name in (SCENARIO_FILE, "bench.toml", "cells.csv")):
            raise UserError(
                f"{plan.folder} holds files of another command; choose another folder", key="--out"
            ) from None
        return
    except (OSError, UnicodeDecodeError, InvalidToml):
        raise UserError("cannot be read; choose another folder with --out", file=str(path)) from None
    now = parse_toml(dump_search(plan.search))
    keys = [key for key in dict.fromkeys([*before, *now]) if key not in MAY_GROW]
    changed = [key for key in keys if before.get(key) != now.get(key)]
    if changed:
        verb = "was" if len(changed) == 1 else "were"
        told = f"{plan.folder} holds another search: {', '.join(changed)} {verb} different"
        raise UserError(f"{told}; choose another folder with --out", key="--out")


def describe_tune(plan: TunePlan) -> Iterator[str]:
    """Yield the lines of ``--dry-run``: the search space, the number of trials, and the first of them."""
    search, spec = plan.search, plan.search.spec
    for dimension in search.space:
        choices = (make_level(dimension.key, choice).label for choice in dimension.choices)
        yield f"search   {dimension.key}: {' | '.join(choices) or dimension.range_words()}"
    share = 100 * search.bench.fixed["data.validation"]
    yield f"metric   {spec.metric}, {share:g} % of training samples held out"
    seeds = ", ".join(map(str, search.seeds))
    yield f"trials   {spec.trials}, {spec.together} at a time by {spec.sampler} → {plan.folder}"
    yield f"seeds    {seeds}"
    yield f"pruner   {spec.pruner}" + f", once {spec.startup} runs are known" * (spec.pruner != "none")
    drawn = "drawn: the base's values are outside the search space"
    yield f"first    {drawn if plan.first is None else f'the base: {in_words(plan.first)}'}"
