"""The batches of a bench with forecasts.

Cells run in three batches: the first two seeds with all baselines and upper bounds; the best setting of each
block with every other seed; all other cells. Forecasts and stops of a batch depend on earlier batches alone.
So they are the same with any number of workers, and after an interruption.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from fedkd.benchmark.cells import Cell
from fedkd.benchmark.finished import read_summary
from fedkd.benchmark.forecast import Bar, Basis, Curve, Rule, kind_of, read_curve, run_forecast
from fedkd.benchmark.results import CENTRALIZED
from fedkd.benchmark.scheduler import Scheduler
from fedkd.benchmark.schema import ForecastFile
from fedkd.benchmark.worker import CellOutcome

MEASURED_SEEDS = 2  # seeds with which every cell runs to its end

Labels = tuple[str, ...]


def run_batches(
    cells: Sequence[Cell],
    waiting: Sequence[Cell],
    runs: Path,
    spec: ForecastFile,
    compared: Sequence[str],
    baseline: Mapping[str, str],
    scheduler: Scheduler,
) -> dict[Cell, CellOutcome]:
    """Run the waiting cells batch after batch; return their outcomes."""
    outcomes: dict[Cell, CellOutcome] = {}
    curves: dict[Cell, Curve] = {}
    first = _first_batch(cells, compared, baseline)
    batches = iter(_batches(cells, first, curves, compared))
    for batch in batches:
        rule = make_rule(batch, curves, spec, compared)
        here = [cell for cell in batch if cell in set(waiting)]
        if here:
            outcomes |= scheduler.run(here, partial(run_forecast, rule))
        for cell in batch:
            folder = runs / cell.folder_name
            if read_summary(folder) is not None:
                curves[cell] = read_curve(folder, spec.metric)
    return outcomes


def _first_batch(cells: Sequence[Cell], compared: Sequence[str], baseline: Mapping[str, str]) -> list[Cell]:
    seeds = list(dict.fromkeys(cell.seed for cell in cells))[:MEASURED_SEEDS]
    group = tuple(baseline.get(axis, "") for axis in compared)
    return [cell for cell in cells if cell.seed in seeds or is_bound(cell) or _group(cell, compared) == group]


def _batches(
    cells: Sequence[Cell], first: Sequence[Cell], curves: Mapping[Cell, Curve], compared: Sequence[str]
) -> Iterator[list[Cell]]:
    """Yield the three batches; `curves` has the finished cells once a batch has run."""
    yield list(first)
    best = _leaders(curves, compared)
    later = [cell for cell in cells if cell not in set(first)]
    leading = [cell for cell in later if best.get(_block(cell, compared)) == _group(cell, compared)]
    yield leading
    yield [cell for cell in later if cell not in set(leading)]


def _leaders(curves: Mapping[Cell, Curve], compared: Sequence[str]) -> dict[Labels, Labels]:
    """Return the setting with the best mean of each block, over the seeds that all settings have."""
    seeds = list(dict.fromkeys(cell.seed for cell in curves))[:MEASURED_SEEDS]
    values: dict[Labels, dict[Labels, list[float]]] = {}
    for cell, curve in curves.items():
        if cell.seed in seeds and curve and not is_bound(cell):
            groups = values.setdefault(_block(cell, compared), {})
            groups.setdefault(_group(cell, compared), []).append(curve[max(curve)])
    return {block: max(groups, key=lambda group: fmean(groups[group])) for block, groups in values.items()}


def is_bound(cell: Cell) -> bool:
    """Return whether a cell is an upper bound, which is shown and not ranked."""
    return cell.scenario.fusion.strategy == CENTRALIZED


def _block(cell: Cell, compared: Sequence[str]) -> Labels:
    return tuple(level.label for axis, level in cell.levels.items() if axis not in compared)


def _group(cell: Cell, compared: Sequence[str]) -> Labels:
    return tuple(cell.levels[axis].label for axis in compared)


def make_rule(
    batch: Sequence[Cell], curves: Mapping[Cell, Curve], spec: ForecastFile, compared: Sequence[str]
) -> Rule:
    """Return the rule of a batch, from the curves of finished cells."""
    kinds: dict[str, list[Curve]] = {}
    ends: dict[tuple[Labels, Labels], dict[int, float]] = {}  # by block and setting, then by seed
    for cell, curve in curves.items():
        kinds.setdefault(kind_of(cell.scenario), []).append(curve)
        if curve and not is_bound(cell):
            place = (_block(cell, compared), _group(cell, compared))
            ends.setdefault(place, {})[cell.seed] = curve[max(curve)]
    bars = {}
    for block, leader in _leaders(curves, compared).items():
        best = ends[block, leader]
        for cell in batch:
            group = _group(cell, compared)
            if _block(cell, compared) != block or group == leader or cell.seed not in best:
                continue
            own = ends.get((block, group), {})
            lags = tuple(own[seed] - best[seed] for seed in own if seed in best)
            bars[cell.folder_name] = Bar(best[cell.seed], lags)
    bases = {kind: Basis.of(known, spec.confidence) for kind, known in kinds.items()}
    return Rule(spec.metric, spec.confidence, spec.stop, bases, bars)
