"""The charts of a bench with curves: a metric over rounds, tasks, bytes or simulated time."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil

import numpy as np

from fedkd.report.chart import MOST_COLUMNS, Chart, Curve, Panel, is_wide
from fedkd.report.metrics import TEST_SAMPLES, Metric, sample_note
from fedkd.report.statistics import FEWEST_SEEDS, interval
from fedkd.report.study import Curve as Recorded
from fedkd.report.study import Study, StudyRun, group_looks, group_title

HOW_TO_READ = "Means over seeds. Bands are 95 % intervals, from three seeds on. Thin lines are single seeds."

OPEN = (-np.inf, np.inf)  # limits of unbounded metrics

Across = Callable[[Sequence[StudyRun], np.ndarray], np.ndarray | None]
"""Maps the runs of a group and rounds `[R]` to x values `[R]`; None for a level line."""


def over_rounds(study: Study, shown: Metric) -> Chart:
    """Return a metric over rounds: a panel per block, a line per group."""
    return _chart(study, shown, "rounds", "over rounds", "round", study.runs)


def over_tasks(study: Study, shown: Metric) -> Chart:
    """Return the average over tasks so far, after each task of a stream."""
    return _chart(study, shown, "tasks", "over tasks", "tasks learned", study.runs, of=lambda run: run.tasks)


def over_traffic(study: Study, shown: Metric) -> Chart:
    """Return a metric over the bytes so far; groups that send nothing have a level line."""
    most = max((run.traffic[-1][1] for run in study.runs if run.traffic), default=0)
    unit, size = next((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 0)) if most >= size)
    scale = size or 1e3

    def across(runs: Sequence[StudyRun], rounds: np.ndarray) -> np.ndarray | None:
        sent = [dict(run.traffic) for run in runs]
        mean = np.array([np.mean([of.get(int(round), 0) for of in sent]) for round in rounds])
        return mean / scale if mean[-1] else None

    title = f"sent so far, up and down ({unit})"
    return _chart(study, shown, "traffic", "against bytes", title, study.runs, across)


def over_time(study: Study, shown: Metric) -> Chart:
    """Return a metric over simulated time; both are means over seeds."""

    def across(runs: Sequence[StudyRun], rounds: np.ndarray) -> np.ndarray:
        clocks = [dict(run.clock) for run in runs]
        return np.array([np.mean([of.get(int(round), np.nan) for of in clocks]) for round in rounds])

    timed = [run for run in study.runs if run.clock]
    return _chart(study, shown, "time", "against simulated time", "simulated time (s)", timed, across)


def _chart(
    study: Study,
    shown: Metric,
    kind: str,
    words: str,
    x: str,
    runs: Sequence[StudyRun],
    across: Across | None = None,
    of: Callable[[StudyRun], Mapping[str, Recorded]] = lambda run: run.curves,
) -> Chart:
    looks, panels = group_looks(study), []
    known = set(map(id, runs))
    for block, groups in study.blocks.items():
        curves: list[Curve] = []
        rows: list[list[object]] = []
        for group, members in groups.items():
            own = [run for run in members if id(run) in known and of(run).get(shown.name)]
            found = curve_over_seeds([of(run)[shown.name] for run in own])
            if found is None:
                continue
            rounds, mean, half, seeds = found
            place = rounds if across is None else across(own, rounds)
            few = half is None and len(seeds) > 1 and place is not None
            thin = seeds * shown.scale if few else ()
            spread = None if half is None else half * shown.scale
            title, limits = group_title(group), (0.0, 100.0) if shown.unit == "%" else OPEN
            curves.append(Curve(title, looks[group], place, mean * shown.scale, spread, thin, limits))
            halves = [""] * len(rounds) if half is None else half.tolist()
            at = [""] * len(rounds) if place is None else place.tolist()
            numbers = zip(at, mean.tolist(), halves, strict=True)
            rows += [[title or study.name, *row] for row in numbers]
        columns = ("group", "x", "mean", "half_width")
        panels.append(Panel(study.block_title(block), curves, x, shown.label, columns, rows))
    ends = [c.x[-1] for panel in panels for c in panel.marks if isinstance(c, Curve) and c.x is not None]
    name, title, width = f"{kind}-{shown.name}", words.capitalize(), panels_across(study)
    parts = [int(size) for run in runs for _, size in run.curves.get(TEST_SAMPLES, ())]
    tested = sample_note(parts) if shown.name.endswith("_global") else ""
    caption = f"{HOW_TO_READ} Measured on the common test set{tested}." if tested else HOW_TO_READ
    if across is None:
        return Chart(name, title, panels, width, caption, ticks="whole")
    return Chart(name, title, panels, width, caption, "log" if is_wide(ends) else "linear")


def panels_across(study: Study) -> int:
    """Return the number of panels per row: the levels of the last block axis, if they fit."""
    across = len(study.block_axes[-1].levels) if len(study.block_axes) > 1 else 1
    if 1 < across <= MOST_COLUMNS:
        return across
    return max(1, ceil(len(study.blocks) / ceil(max(len(study.blocks), 1) / MOST_COLUMNS)))


def curve_over_seeds(
    curves: Sequence[Sequence[tuple[float, float]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray] | None:
    """Return the mean curve of n seeds, given pairs of x and value; None if they share no x.

    The result has the shared x `[R]`, means `[R]`, half widths of 95 % intervals `[R]` (None below three
    seeds), and values `[n, R]`.
    """
    tables = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    if not shared:
        return None
    values = np.array([[table[at] for at in shared] for table in tables], dtype=np.float64)
    half = None
    if len(values) >= FEWEST_SEEDS:
        half = np.array([interval(column.tolist()).half for column in values.T], dtype=np.float64)
    return np.array(shared), values.mean(axis=0), half, values
