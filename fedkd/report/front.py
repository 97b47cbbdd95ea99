"""The charts of a bench with points: one final value of each group against another."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedkd.report.chart import MOST_COLUMNS, Chart, Curve, Look, Panel, Point, is_wide
from fedkd.report.curves import panels_across
from fedkd.report.metrics import Metric, find_metric
from fedkd.report.statistics import FEWEST_SEEDS, Interval
from fedkd.report.study import (
    Labels,
    Study,
    StudyRun,
    final_interval,
    group_looks,
    group_title,
    told_by_colour,
    values_by_seed,
)

# Metrics along the two axes.
BEFORE = (find_metric("accuracy_before_fusion_global"), find_metric("accuracy_before_fusion_local"))
AFTER = (find_metric("accuracy_global"), find_metric("accuracy_local"))
FEWEST_ON_A_CURVE = 3
NUMBER = re.compile(r"\d+(?:\.\d+)?")
HOW_TO_READ = (
    "After the last round. Bars are 95 % intervals, from three seeds on. Small points are single seeds."
)

Pair = tuple[float, float]


def local_against_global(study: Study) -> Chart:
    """Return final local against global accuracy, with the line of equal values if it is in sight."""
    chart = _points_chart(study, AFTER, "local-against-global", "Local against global accuracy")
    x, y = (_ends(chart, axis) for axis in (0, 1))
    if not x or max(min(x), min(y)) >= min(max(x), max(y)):
        return chart
    ends = (max(min(x), min(y)), min(max(x), max(y)))
    equal = _line("local = global", "#A0A0A0", [(end, end) for end in ends])
    panels = [replace(panel, marks=[*panel.marks, equal]) for panel in chart.drawn]
    return replace(chart, panels=panels)


def accuracy_against_stored(study: Study) -> Chart:
    """Return the average accuracy of a stream against the stored bytes per task."""
    shown = (find_metric("stored_bytes_per_task"), find_metric("average_accuracy"))
    title = "Average accuracy against stored bytes"
    chart = _points_chart(study, shown, "accuracy-against-stored", title)
    kept = [size for size in _ends(chart, 0) if size > 0]
    return replace(chart, scale="symlog", least=min(kept)) if is_wide(kept) else chart


def local_global_front(study: Study) -> Chart:
    """Return local against global accuracy before and after fusion, a panel per block and moment.

    Solid lines join groups whose names differ in one number (`knfu 1`, `knfu 2`, `knfu 10`); a dotted line is
    the Pareto front. Groups on the front are named if there are more groups than colours. Bounds are left out
    of the front.
    """
    blocks, across = list(study.blocks), min(len(study.blocks), MOST_COLUMNS)
    panels: list[Panel | None] = []
    for first in range(0, len(blocks), across):
        for moment, shown in (("before fusion", BEFORE), ("after fusion", AFTER)):
            row = [_front_panel(study, block, moment, shown) for block in blocks[first : first + across]]
            panels += [*row, *[None] * (across - len(row))]
    caption = f"{HOW_TO_READ} Dotted: the Pareto front of both accuracies."
    return Chart("front", "Pareto front", panels, across, caption, shared=False)


def _front_panel(study: Study, block: Labels, moment: str, shown: tuple[Metric, Metric]) -> Panel:
    panel, points = _panel(study, block, shown)
    title = ", ".join(filter(None, (panel.title, moment)))
    if not points:
        return replace(panel, title=title)
    marks: list[Curve | Point] = [
        _line("", points[curve[0]].look.colour, [points[group].at for group in curve], "solid")
        for curve in curves(list(points))
    ]
    groups = study.blocks[block]
    real = {g: point for g, point in points.items() if not any(run.is_bound for run in groups[g])}
    best = undominated([point.at for point in real.values()])
    named = not told_by_colour(group_looks(study))
    for group, point in points.items():
        marks.append(replace(point, named=named and group in real and point.at in best, seeds=()))
    if best:
        marks.append(_line("Pareto front", "#404040", best))
    # The limits follow the means: intervals of few seeds would hide the differences.
    ends = [(min(values), max(values)) for values in zip(*(p.at for p in points.values()), strict=True)]
    margins = [max(1.0, 0.06 * (high - low)) for low, high in ends]
    x, y = ((low - more, high + more) for (low, high), more in zip(ends, margins, strict=True))
    return replace(panel, title=title, marks=marks, reach=(x, y))


def _points_chart(study: Study, shown: tuple[Metric, Metric], name: str, title: str) -> Chart:
    panels = [_panel(study, block, shown)[0] for block in study.blocks]
    return Chart(name, title, panels, panels_across(study), HOW_TO_READ)


def _panel(study: Study, block: Labels, shown: tuple[Metric, Metric]) -> tuple[Panel, dict[Labels, Point]]:
    """Return the points of a block's groups."""
    looks, rows, points = group_looks(study), [], {}
    for group, runs in study.blocks[block].items():
        x, y = (final_interval(runs, of_axis) for of_axis in shown)
        if x is None or y is None:
            continue
        at = (x.mean * shown[0].scale, y.mean * shown[1].scale)
        half = (_half(x, shown[0]), _half(y, shown[1]))
        seeds = _seeds(runs, shown) if None in half and len(runs) > 1 else []
        points[group] = Point(group_title(group), looks[group], at, half, seeds)
        rows.append([group_title(group) or study.name, x.mean, x.half, y.mean, y.half])
    columns = ("group", shown[0].name, "half_width", shown[1].name, "half_width")
    labels = shown[0].label, shown[1].label
    return Panel(study.block_title(block), list(points.values()), *labels, columns, rows), points


def _half(value: Interval, shown: Metric) -> float | None:
    few = value.half is None or value.seeds < FEWEST_SEEDS
    return None if few or value.half is None else value.half * shown.scale


def _seeds(runs: tuple[StudyRun, ...], shown: tuple[Metric, Metric]) -> list[Pair]:
    x, y = (values_by_seed(runs, of_axis.name) for of_axis in shown)
    return [(x[seed] * shown[0].scale, y[seed] * shown[1].scale) for seed in sorted(x.keys() & y.keys())]


def _ends(chart: Chart, axis: int) -> list[float]:
    """Return the ends of intervals and the values of single seeds along an axis."""
    points = [mark for panel in chart.drawn for mark in panel.marks if isinstance(mark, Point)]
    ends = [point.at[axis] + sign * (point.half[axis] or 0.0) for point in points for sign in (-1, 1)]
    return ends + [seed[axis] for point in points for seed in point.seeds]


def _line(name: str, colour: str, points: Sequence[Pair], dash: str = "dot") -> Curve:
    x, y = np.array(points).T
    return Curve(name, Look(colour, dash), x, y, width=0.9)


def curves(groups: Sequence[Labels]) -> list[list[Labels]]:
    """Return families of three or more groups whose names differ in one number, in its order."""
    families: dict[tuple[int, str], list[tuple[float, Labels]]] = {}
    for group in groups:
        title = group_title(group)
        for place, number in enumerate(NUMBER.finditer(title)):
            template = f"{title[: number.start()]}#{title[number.end() :]}"
            families.setdefault((place, template), []).append((float(number.group()), group))
    ordered = [sorted(family) for family in families.values() if len(family) >= FEWEST_ON_A_CURVE]
    return [[group for _, group in family] for family in ordered]


def undominated(points: Sequence[Pair]) -> list[Pair]:
    """Return the Pareto front of points, ordered by the first coordinate."""
    found: list[Pair] = []
    for point in sorted(set(points), reverse=True):
        if not found or point[1] > found[-1][1]:
            found.append(point)
    return found[::-1]
