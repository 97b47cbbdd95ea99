"""Local against global accuracy at both moments of a round: who is good at both, and what a number buys."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from textwrap import fill
from typing import TYPE_CHECKING, Any

from fedkd.report.curves import FEWEST_SEEDS
from fedkd.report.metrics import Metric, metric
from fedkd.report.scatter import around
from fedkd.report.study import Labels, Study, StudyRun, final_interval, group_title
from fedkd.report.style import LEGEND_LINE, Look, group_looks, new_figure, told_by_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOMENTS = (
    (metric("accuracy_trained_global"), metric("accuracy_trained_local")),
    (metric("accuracy_global"), metric("accuracy_local")),
)
"""What stands along the two axes, after own training and after guidance."""
BOTH_MOMENTS = frozenset(shown.name for axes in MOMENTS for shown in axes)
"""What has to be recorded for this figure."""
FEWEST_ON_A_CURVE = 3
PANELS_ACROSS = 4
"""Blocks that stand side by side; further ones stand below."""
TITLE = 34
"""Characters that have room above a panel."""
NAME: Mapping[str, Any] = {"textcoords": "offset points", "fontsize": 7, "zorder": 4}
"""How a point's name looks."""
BESIDE: Sequence[Mapping[str, Any]] = (
    {"xytext": (3, 3), "va": "bottom"},
    {"xytext": (3, -3), "va": "top"},
)
"""Where names stand, by turns, so that those of neighbours do not meet."""
FRONT: Mapping[str, Any] = {"color": "#404040", "linewidth": 0.9, "linestyle": ":", "zorder": 1}
CURVE: Mapping[str, Any] = {"linewidth": 0.9, "alpha": 0.7, "zorder": 2}
NUMBER = re.compile(r"\d+(?:\.\d+)?")

Point = tuple[float, float]


def local_global_front(study: Study) -> Figure:
    """Draw a panel per block and moment: a point a group with its 95 % interval.

    Groups whose names differ in one number alone are joined in its order, as `knfu 1`, `knfu 2`, `knfu 10`
    are; a dotted line joins those that no other group beats in both accuracies, which have their names beside
    them where a legend is too long to find them in. Bounds that are no federation are drawn and beat nobody.
    """
    from matplotlib.lines import Line2D

    looks, blocks = group_looks(study), list(study.blocks)
    across, down = min(len(blocks), PANELS_ACROSS), math.ceil(len(blocks) / PANELS_ACROSS)
    height = max(2.7 * down * len(MOMENTS), LEGEND_LINE * (len(looks) + 1) + 0.3)
    longest = max((len(group_title(group)) for group in looks), default=0)
    figure = new_figure(2.6 * across + 0.6 + 0.068 * longest, height)
    panels = figure.subplots(down * len(MOMENTS), across, squeeze=False)
    drawn: set[Labels] = set()
    for (number, block), (moment, shown) in product(enumerate(blocks), enumerate(MOMENTS)):
        band, column = divmod(number, across)
        axes = panels[band * len(MOMENTS) + moment][column]
        drawn |= _panel(axes, study.blocks[block], shown, looks)
        if moment == 0:
            axes.set_title(fill(study.block_title(block), TITLE))
        axes.set_xlabel(shown[0].label)
        if column == 0:
            axes.set_ylabel(shown[1].label)
    for row, column in product(range((down - 1) * len(MOMENTS), down * len(MOMENTS)), range(across)):
        if (down - 1) * across + column >= len(blocks):
            panels[row][column].remove()
    handles = [
        Line2D([], [], linestyle="none", color=look.colour, marker=look.marker, label=group_title(group))
        for group, look in looks.items()
        if group in drawn and group
    ]
    handles.append(Line2D([], [], label="beaten by none in both", **FRONT))
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _panel(
    axes: Axes,
    groups: Mapping[Labels, tuple[StudyRun, ...]],
    shown: Sequence[Metric],
    looks: Mapping[Labels, Look],
) -> set[Labels]:
    """Draw the groups of a block at one moment, and return those that have a point."""
    placed = {}
    for group, runs in groups.items():
        point = _point(axes, runs, shown, looks[group])
        if point is not None:
            placed[group] = point
    for curve in curves(list(placed)):
        x, y = zip(*(placed[group] for group in curve), strict=True)
        axes.plot(x, y, color=looks[curve[0]].colour, **CURVE)
    real = {group: at for group, at in placed.items() if not any(run.is_bound for run in groups[group])}
    if real:
        best = undominated(list(real.values()))
        axes.plot(*zip(*best, strict=True), **FRONT)
        if not told_by_colour(looks):
            named = sorted((at, group) for group, at in real.items() if at in best)
            for (at, group), beside in zip(named, cycle(BESIDE), strict=False):
                axes.annotate(group_title(group), at, **NAME, **beside)
    if placed:  # intervals of few seeds may be wider than all that is to be told apart
        axes.set_xlim(*around([x for x, _ in placed.values()]))
        axes.set_ylim(*around([y for _, y in placed.values()]))
    return set(placed)


def _point(axes: Axes, runs: tuple[StudyRun, ...], shown: Sequence[Metric], look: Look) -> Point | None:
    """Draw a group's point with its intervals, and return where it is; None: it has none."""
    middles, bars = [], []
    for of_axis in shown:
        value = final_interval(runs, of_axis)
        if value is None:
            return None
        middles.append(value.mean * of_axis.scale)
        few = value.half is None or value.seeds < FEWEST_SEEDS
        bars.append(None if few or value.half is None else value.half * of_axis.scale)
    axes.errorbar(
        middles[0],
        middles[1],
        xerr=bars[0],
        yerr=bars[1],
        color=look.colour,
        elinewidth=0.6,
        marker=look.marker,
        markersize=4.5,
        linestyle="none",
        zorder=3,
    )
    return middles[0], middles[1]


def curves(groups: Sequence[Labels]) -> list[list[Labels]]:
    """Return the groups whose names differ in one number alone, in its order: at least three at a time."""
    families: dict[tuple[int, str], list[tuple[float, Labels]]] = {}
    for group in groups:
        title = group_title(group)
        for place, number in enumerate(NUMBER.finditer(title)):
            template = f"{title[: number.start()]}#{title[number.end() :]}"
            families.setdefault((place, template), []).append((float(number.group()), group))
    ordered = [sorted(family) for family in families.values() if len(family) >= FEWEST_ON_A_CURVE]
    return [[group for _, group in family] for family in ordered]


def undominated(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in both coordinates, by the first."""
    found: list[Point] = []
    for point in sorted(set(points), reverse=True):
        if not found or point[1] > found[-1][1]:
            found.append(point)
    return found[::-1]
