"""Runs a bench, for Python and for the command line."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path

from fedkd.benchmark.cells import (
    Axis,
    Cell,
    combinations,
    compared_axes,
    make_axes,
    make_cells,
    plug_ins_of_cells,
    resolve_baseline,
    run_name,
    shown_metrics,
)
from fedkd.benchmark.estimate import estimate
from fedkd.benchmark.finished import DIGESTS, find_damage, read_summary
from fedkd.benchmark.folder import check_folder
from fedkd.benchmark.forecast import check_forecasts, forecast_words, is_stopped
from fedkd.benchmark.forecast_batches import run_batches
from fedkd.benchmark.forecast_results import forecast_line, forecast_rows, write_forecasts
from fedkd.benchmark.progress import make_bench_progress
from fedkd.benchmark.references import SHARE_BELOW, add_reference_metrics, add_share_below
from fedkd.benchmark.results import (
    FinishedCell,
    chance_line,
    collect,
    directions,
    study_run,
    write_cells,
    write_results,
)
from fedkd.benchmark.scheduler import CellCheck, Scheduler, open_scheduler
from fedkd.benchmark.schema import Bench, dump_bench, load_bench
from fedkd.benchmark.verdicts import VERDICTS, check_verdicts, verdict_table
from fedkd.benchmark.worker import CellOutcome
from fedkd.errors import UserError
from fedkd.plugins import Omissions
from fedkd.report import Study, StudyAxis, csv_table, latex_table, markdown_table, write_study
from fedkd.scenario import read_scenario, read_toml, toml_value
from fedkd.storage import expand_path, write_text_atomically
from fedkd.tracking import (
    BENCH_FILE,
    CELLS_FILE,
    REPORT_FILE,
    SCENARIO_FILE,
    STUDY_FILE,
    format_duration,
    markdown_to_html,
)

log = logging.getLogger("fedkd.benchmark")


@dataclass(frozen=True)
class BenchPlan:
    """A checked bench; `unopened` maps keys to plug-ins that were not imported."""

    bench: Bench
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    compared: tuple[str, ...]
    folder: Path
    unopened: Mapping[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        """The folder of the run folders."""
        return self.folder / "runs"

    def waiting(self) -> list[Cell]:
        """Return the cells that are not done, or whose files are damaged."""
        stopped = set(self.stopped())
        return [
            cell
            for cell in self.cells
            if cell not in stopped and read_summary(self.runs / cell.folder_name) is None
        ]

    def stopped(self) -> list[Cell]:
        """Return the cells that were stopped on a forecast, if the bench still asks for it."""
        if self.bench.spec.forecast is None or not self.bench.spec.forecast.stop:
            return []
        return [cell for cell in self.cells if is_stopped(self.runs / cell.folder_name)]


@dataclass(frozen=True)
class BenchResult:
    """A bench that has run.

    The folder holds `report.html`, `results.parquet`, `results.csv`, `cells.csv`, `table.md`, `table.csv`,
    `table.tex`, `figures/`, `study.json`, `bench.toml` and `runs/`. `study` has the finished runs.
    """

    folder: Path
    cells: tuple[FinishedCell, ...]
    study: Study

    @property
    def failed(self) -> tuple[FinishedCell, ...]:
        """The cells that failed."""
        return tuple(cell for cell in self.cells if cell.outcome.status == "failed")

    verdicts: str = ""  # the table of the bench's claims

    def table(self) -> str:
        """Return the table in Markdown, with the bench's claims below."""
        return markdown_table(self.study) + (f"\n{self.verdicts}\n" if self.verdicts else "")

    def _repr_html_(self) -> str:
        return markdown_to_html(f"{self.table()}\nresults {self.folder}")


def plan_bench(
    path: str | Path, overrides: Sequence[str] = (), out: str | Path | None = None, *, plug_ins: bool = True
) -> BenchPlan:
    """Read a bench file and resolve every cell.

    A mistake, or runs of another bench in the folder, raise `UserError`. Without `plug_ins` none is imported,
    and the plan can only be described.
    """
    bench = load_bench(path, overrides)
    axes = make_axes(bench)
    compared = compared_axes(axes, resolve_baseline(bench, axes))
    cells = tuple(make_cells(bench, plug_ins=plug_ins))
    if bench.spec.forecast is not None:
        check_forecasts(cells, bench.file)
    settings = [", ".join(level.label for level in cell.levels.values()) for cell in cells]
    check_verdicts(bench.spec.verdicts, list(dict.fromkeys(settings)), bench.file)
    folder = Path(out) if out is not None else Path("runs") / f"bench-{bench.spec.name}"
    folder = expand_path(folder, key="--out").absolute()
    unopened = {} if plug_ins else plug_ins_of_cells(cells)
    if not unopened:
        check_folder(cells, folder)
    return BenchPlan(bench, axes, cells, compared, folder, unopened)


def bench(
    path: str | Path, *, out: str | Path | None = None, overrides: Sequence[str] = (), quiet: bool = True
) -> BenchResult:
    """Run every cell of a bench that is not done yet, then write its tables and figures.

    A cell that fails is recorded and does not stop the others; the next call tries it again.

    Args:
        out: Folder of the bench; absent: ``runs/bench-NAME``. On a cluster, all nodes must see it.
        overrides: ``key=value`` texts of ``--set``.

    Raises:
        UserError: The bench has a mistake; nothing has run.
        Interrupted: Stopped by a signal; the same call continues.
    """
    plan = plan_bench(path, overrides, out)
    waiting = plan.waiting()
    done = len(plan.cells) - len(waiting)
    spec, dumped = plan.bench.spec, (BENCH_FILE, dump_bench(plan.bench))
    display = partial(make_bench_progress, waiting, done, plan.compared, quiet=quiet)
    with open_scheduler(plan.folder, plan.bench.file, dumped, spec.parallel, display) as scheduler:
        tell = scheduler.progress.message
        tell(f"{spec.name}: {len(plan.cells)} cells, {done} done → {plan.folder}")
        outcomes: dict[Cell, CellOutcome] = {}
        if waiting:
            tell("checking data and models")
            outcomes = _run(plan, waiting, scheduler)
        scheduler.close()
        tell("writing tables and figures")
        stopped = {cell: CellOutcome("stopped") for cell in plan.stopped()}
        return _report(plan, stopped | outcomes, tell)


def _run(plan: BenchPlan, waiting: Sequence[Cell], scheduler: Scheduler) -> dict[Cell, CellOutcome]:
    spec = plan.bench.spec.forecast
    if spec is None:
        return scheduler.run(waiting)
    scheduler.progress.remark = lambda cell: forecast_words(plan.runs / cell.folder_name)
    baseline = resolve_baseline(plan.bench, plan.axes)
    return run_batches(plan.cells, waiting, plan.runs, spec, plan.compared, baseline, scheduler)


def _report(
    plan: BenchPlan, outcomes: Mapping[Cell, CellOutcome], tell: Callable[[str], None]
) -> BenchResult:
    from fedkd.report import draw_figures, write_final_report

    finished = add_reference_metrics(collect(plan.cells, plan.runs, outcomes), plan.axes)
    done = [cell for cell in finished if cell.done]
    stopped = sum(cell.outcome.status == "stopped" for cell in finished)
    metrics, cells = shown_metrics(plan.bench, plan.cells), len(finished)
    study = study_of(plan.bench, plan.axes, done, metrics, cells, stopped)
    if (spec := plan.bench.spec.forecast) is not None:
        rows = forecast_rows(plan.cells, plan.runs)
        write_forecasts(rows, plan.axes, plan.folder)
        tell(forecast_line(rows, spec.stop))
    omissions = Omissions()
    with omissions.without("results.parquet, results.csv"):
        write_results(finished, plan.axes, plan.folder)
    write_cells(finished, plan.axes, plan.folder / CELLS_FILE)
    write_text_atomically(plan.folder / "table.md", markdown_table(study))
    write_text_atomically(plan.folder / "table.csv", csv_table(study))
    write_text_atomically(plan.folder / "table.tex", latex_table(study))
    write_study(study, plan.folder)
    if done:
        with omissions.without("figures"):
            draw_figures(study, plan.folder / "figures", tell)
    with omissions.without(REPORT_FILE):
        write_final_report(plan.folder, tell)
    omissions.report(log.warning)
    if (warning := chance_line(done)) is not None:
        tell(warning)
    claims = plan.bench.spec.verdicts
    verdicts = verdict_table(claims, study) if claims else ""
    if claims:
        write_text_atomically(plan.folder / VERDICTS, f"{verdicts}\n")
    return BenchResult(plan.folder, tuple(finished), study, verdicts)


def study_of(
    bench: Bench,
    axes: tuple[Axis, ...],
    done: Sequence[FinishedCell],
    metrics: Sequence[str],
    cells: int,
    stopped: int = 0,
) -> Study:
    """Return the study of a bench; `stopped` cells were stopped on a forecast."""
    baseline = resolve_baseline(bench, axes)
    compared = compared_axes(axes, baseline)
    if any(name.startswith(SHARE_BELOW) for name in metrics):
        done = add_share_below(done, compared, baseline)
    return Study(
        name=bench.spec.name,
        axes=tuple(StudyAxis(axis.name, tuple(level.label for level in axis.levels)) for axis in axes),
        compared=compared,
        baseline=tuple(baseline[name] for name in compared if name in baseline),
        metrics=tuple(metrics),
        runs=tuple(study_run(cell, axes) for cell in done),
        missing=cells - len(done) - stopped,
        stopped=stopped,
        better=directions(done, metrics),
    )


def partial_study(folder: Path) -> Study | None:
    """Return the study of a bench folder's finished cells; None: `study.json` has them all."""

    def written(path: Path) -> int:
        try:
            return path.stat().st_mtime_ns
        except OSError:  # there is none
            return 0

    newest = max((written(path) for path in (folder / "runs").glob(f"*/{DIGESTS}")), default=0)
    if not (folder / BENCH_FILE).is_file() or 0 < newest <= written(folder / STUDY_FILE):
        return None
    bench = load_bench(folder / BENCH_FILE)
    axes = make_axes(bench)
    done = add_reference_metrics(list(_cells_done(bench, axes, folder / "runs")), axes)
    if not done:
        raise UserError("no cell of the bench is done yet", file=str(folder))
    cells = len(bench.seeds) * prod(len(axis.levels) for axis in axes)
    may_stop = bench.spec.forecast is not None
    stopped = sum(is_stopped(run) for run in (folder / "runs").iterdir()) if may_stop else 0
    return study_of(bench, axes, done, shown_metrics(bench, [cell.cell for cell in done]), cells, stopped)


def _cells_done(bench: Bench, axes: tuple[Axis, ...], runs: Path) -> Iterator[FinishedCell]:
    """Yield the finished cells, found by name: hashes need plug-ins and the place of the bench's file."""
    folders = {path.name[:-9]: path for path in sorted(runs.glob("*-????????"))}
    for seed, levels in combinations(bench, axes):
        name = run_name(levels, seed)
        if name not in folders or (summary := read_summary(folders[name])) is None:
            continue
        with suppress(UserError):  # its scenario was damaged since
            run = folders[name]
            scenario = read_scenario(read_toml(run / SCENARIO_FILE), folder=run)
            cell = Cell(levels, seed, scenario, run.name[-8:])
            yield FinishedCell(cell, run, CellOutcome("done"), summary)


def describe_plan(plan: BenchPlan) -> Iterator[str]:
    """Yield the lines of ``--dry-run``, then raise a `UserError` if a cell cannot run."""
    for axis in plan.axes:
        yield f"axis   {axis.name}: {', '.join(level.label for level in axis.levels)}"
    yield f"seeds  {', '.join(map(str, plan.bench.seeds))}"
    if plan.unopened:
        yield f"cells  {len(plan.cells)} → {plan.folder}"
        yield from (f"  {cell.label}" for cell in plan.cells)
        told = ", ".join(f"{key} = {toml_value(name)}" for key, name in plan.unopened.items())
        yield f"unchecked  finished cells and the time left, which need {told}"
        return
    damages = {cell: find_damage(plan.runs / cell.folder_name) for cell in plan.waiting()}
    done = len(plan.cells) - len(damages)
    yield f"cells  {len(plan.cells)}, {done} done → {plan.folder}"
    for cell in plan.cells:
        again = f" (damaged: {damages[cell]})" if damages.get(cell) else ""
        yield f"  {'to do' if cell in damages else 'done':<6} {cell.label}  {cell.folder_name}{again}"
    CellCheck(plan.bench.file).check(list(damages))
    seconds, basis = estimate(plan.cells, plan.runs, plan.compared)
    yield f"time   about {format_duration(seconds)} if one cell runs at a time"
    yield f"       ({basis})"
