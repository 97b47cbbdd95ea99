"""The study of a bench that was interrupted, or killed: of the cells that are done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path

from fedkd.benchmark.bench import study_of
from fedkd.benchmark.cells import Axis, Cell, combinations, make_axes, shown_metrics
from fedkd.benchmark.finished import DIGESTS, read_summary
from fedkd.benchmark.references import beside_references
from fedkd.benchmark.results import FinishedCell
from fedkd.benchmark.schema import Bench, load_bench
from fedkd.benchmark.worker import Outcome
from fedkd.errors import UserError
from fedkd.report.study import Study
from fedkd.run_folder import SCENARIO
from fedkd.scenario.load import read_scenario, read_toml
from fedkd.tracking.folder import BENCH, STUDY


def study_so_far(folder: Path) -> Study | None:
    """Return the study of what is done of a bench; None: the one in its folder has all of it.

    Args:
        folder: The bench folder; of another folder there is none.

    Raises:
        UserError: Its bench file cannot be read, or no cell is done.
    """
    newest = max((_written(path) for path in (folder / "runs").glob(f"*/{DIGESTS}")), default=0)
    if not (folder / BENCH).is_file() or 0 < newest <= _written(folder / STUDY):
        return None
    bench = load_bench(folder / BENCH)
    axes = make_axes(bench)
    done = beside_references(list(_done(bench, axes, folder / "runs")), axes)
    if not done:
        raise UserError("no cell of the bench is done yet", file=str(folder))
    cells = len(bench.seeds) * prod(len(axis.levels) for axis in axes)
    return study_of(bench, axes, done, shown_metrics(bench, [cell.cell for cell in done]), cells)


def _done(bench: Bench, axes: tuple[Axis, ...], runs: Path) -> Iterator[FinishedCell]:
    """Yield the cells that are done.

    Run folders are found by the names of cells. Their hashes would need plug-ins, and the place of the file
    that the bench was read from.
    """
    folders = {path.name[:-9]: path for path in sorted(runs.glob("*-????????"))}
    for seed, levels in combinations(bench, axes):
        name = Cell.name_of(levels, seed)
        if name not in folders or (summary := read_summary(folders[name])) is None:
            continue
        with suppress(UserError):  # its scenario was damaged since
            run = folders[name]
            scenario = read_scenario(read_toml(run / SCENARIO), folder=run)
            cell = Cell(levels, seed, scenario, run.name[-8:])
            yield FinishedCell(cell, run, Outcome("done"), summary)


def _written(path: Path) -> int:
    """Return when a file was written, in nanoseconds; 0: there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
