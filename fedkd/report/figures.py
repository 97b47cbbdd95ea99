"""The figures of a bench, as charts of a `Study`."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from fedkd.report import front
from fedkd.report.chart import Chart, Matrix, Panel
from fedkd.report.curves import over_rounds, over_tasks, over_time, over_traffic
from fedkd.report.metrics import Metric
from fedkd.report.statistics import FEWEST_SEEDS, Interval
from fedkd.report.study import Study, final_interval, group_looks, told_by_colour
from fedkd.report.style import draw_chart, house_style, save


def draw_figures(study: Study, folder: Path, tell: Callable[[str], None] = print) -> list[Path]:
    """Draw every figure that the runs of a study allow; `tell` about failures.

    Raises:
        MissingPackage: matplotlib is missing.
    """
    files = []
    with house_style():
        folder.mkdir(parents=True, exist_ok=True)
        for name, chart in study_charts(study):
            try:
                files += save(draw_chart(chart()), folder, name)
            except OSError as error:
                tell(f"figure {name} could not be written: {error.strerror or error}")
            except Exception as error:  # a figure must not fail a bench of hours
                tell(f"figure {name} could not be drawn: {type(error).__name__}: {error}")
    return files


def study_charts(study: Study) -> Iterator[tuple[str, Callable[[], Chart]]]:
    """Yield the name of each possible chart, and a function that makes it."""
    for shown in study.shown:
        yield from metric_charts(study, shown)
    yield from plane_charts(study)


def metric_charts(study: Study, shown: Metric) -> Iterator[tuple[str, Callable[[], Chart]]]:
    """Yield the charts of one metric."""
    name = shown.name
    if any(len(run.curves.get(name, ())) > 1 for run in study.runs):
        yield f"rounds-{name}", partial(over_rounds, study, shown)
        if any(run.traffic and run.traffic[-1][1] for run in study.runs):
            yield f"traffic-{name}", partial(over_traffic, study, shown)
        if any(run.clock for run in study.runs):
            yield f"time-{name}", partial(over_time, study, shown)
    if any(len(run.tasks.get(name, ())) > 1 for run in study.runs):
        yield f"tasks-{name}", partial(over_tasks, study, shown)
    two_axes = len(study.block_axes) == len(study.compared_axes) == 1
    if two_axes and any(name in run.final for run in study.runs):
        yield f"heatmap-{name}", partial(heat_map, study, shown)


def plane_charts(study: Study) -> Iterator[tuple[str, Callable[[], Chart]]]:
    """Yield the charts of one final value against another."""
    plane = {shown.name for shown in front.AFTER}
    both = plane | {shown.name for shown in front.BEFORE}
    on_plane = {study.group_of(run) for run in study.runs if run.final.keys() >= plane}
    groups = {study.group_of(run) for run in study.runs if run.final.keys() >= both}
    has_front = len(groups) >= front.FEWEST_ON_A_CURVE
    # The front names its best groups, so it replaces the plane if there are more groups than colours.
    if on_plane and (told_by_colour(group_looks(study)) or not has_front or groups != on_plane):
        yield "local-against-global", partial(front.local_against_global, study)
    if has_front:
        yield "front", partial(front.local_global_front, study)
    if any({"average_accuracy", "stored_bytes_per_task"} <= run.final.keys() for run in study.runs):
        yield "accuracy-against-stored", partial(front.accuracy_against_stored, study)


def heat_map(study: Study, shown: Metric) -> Chart:
    """Return final values of a study with two axes: rows of the compared one, columns of the other."""
    down, across = study.compared_axes[0], study.block_axes[0]
    values = [
        [final_interval(study.blocks[column,][row,], shown) for column in across.levels]
        for row in down.levels
    ]
    means = np.array([[np.nan if v is None else v.mean * shown.scale for v in row] for row in values])
    texts = [[_cell_text(value, shown) for value in row] for row in values]
    matrix = Matrix(means, down.levels, across.levels, shown.label, texts)
    rows = [
        [group, block, *((None, None) if v is None else (v.mean, v.half))]
        for group, of_group in zip(down.levels, values, strict=True)
        for block, v in zip(across.levels, of_group, strict=True)
    ]
    columns = (down.name, across.name, "mean", "half_width")
    panel = Panel("", [matrix], study.title(across), study.title(down), columns, rows)
    return Chart(f"heatmap-{shown.name}", "Final values", [panel], caption="Means over seeds.")


def _cell_text(value: Interval | None, shown: Metric) -> str:
    if value is None:
        return "–"
    mean = f"{value.mean * shown.scale:.{shown.decimals}f}"
    if value.half is None or value.seeds < FEWEST_SEEDS:
        return mean
    return f"{mean}\n± {value.half * shown.scale:.{shown.decimals}f}"
