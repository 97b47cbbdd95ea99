"""Figures of one final value against another: a colour per group, a marker per block, 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedkd.report.curves import FEWEST_SEEDS
from fedkd.report.metrics import Metric, metric
from fedkd.report.study import Labels, Study, StudyRun, final_interval, group_title, values_by_seed
from fedkd.report.style import LEGEND_LINE, LOG_RATIO, MARKERS, Look, group_looks, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EQUAL: Mapping[str, Any] = {"color": "#A0A0A0", "linestyle": ":"}


@dataclass
class Drawn:
    """What a figure shows so far: what its legend names, and how far it reaches.

    Attributes:
        groups: The groups that have a point.
        blocks: The blocks that have one.
        across: Ends of all intervals and single seeds, along the first axis.
        up: The same along the second.
    """

    groups: dict[Labels, Look] = field(default_factory=dict)
    blocks: dict[Labels, str] = field(default_factory=dict)
    across: list[float] = field(default_factory=list)
    up: list[float] = field(default_factory=list)


def local_against_global(study: Study) -> Figure:
    """Draw final local against global accuracy, with the line of equal ones where it is in sight."""
    from matplotlib.lines import Line2D

    across, up = metric("accuracy_global"), metric("accuracy_local")
    # Its labels decide how much room there is, and the room how far the axes reach.
    figure, axes, drawn = _scatter(study, across, up, spare=1)
    (left, right), (bottom, top) = around(drawn.across), around(drawn.up)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    explained = []
    if max(left, bottom) < min(right, top):
        ends = [min(left, bottom), max(right, top)]
        axes.plot(ends, ends, linewidth=1, zorder=0, scalex=False, scaley=False, **EQUAL)
        explained.append(Line2D([], [], label="local = global", **EQUAL))
    _legend(figure, study, drawn, explained)
    return figure


def accuracy_against_stored(study: Study) -> Figure:
    """Draw the average accuracy after a stream of tasks against what learners keep of each task, in bytes.

    Both as every scenario's own protocol has it. Learners that keep nothing stand at the left.
    """
    across, up = metric("stored_bytes_per_task"), metric("average_accuracy")
    figure, axes, drawn = _scatter(study, across, up)
    stored = [run.final[across.name] * across.scale for run in study.runs if across.name in run.final]
    kept = [size for size in stored if size > 0]
    if kept and max(kept) > LOG_RATIO * min(kept):
        # Zero has a place on this scale, below the least that anybody keeps.
        axes.set_xscale("symlog", linthresh=min(kept))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlim(left=0 if min(stored, default=0) > 0 and min(drawn.across, default=0) >= 0 else None)
    axes.set_ylim(around(drawn.up))
    _legend(figure, study, drawn)
    return figure


def around(values: Sequence[float]) -> tuple[float, float]:
    """Return limits that show all values, ends of intervals among them, with a margin."""
    margin = max(1.0, 0.06 * (max(values) - min(values)))
    return min(values) - margin, max(values) + margin


def _scatter(study: Study, across: Metric, up: Metric, spare: int = 0) -> tuple[Figure, Axes, Drawn]:
    """Draw a point a group and block, with its intervals, or its seeds where they are few.

    Args:
        study: What to show.
        across: The metric along the first axis.
        up: The metric along the second.
        spare: Lines that the legend may have besides.
    """
    looks, drawn = group_looks(study), Drawn()
    points: list[tuple[str, Look, tuple[StudyRun, ...]]] = []
    for number, (block, groups) in enumerate(study.blocks.items()):
        for group, runs in groups.items():
            if final_interval(runs, across) is not None and final_interval(runs, up) is not None:
                drawn.groups[group] = looks[group]
                drawn.blocks[block] = MARKERS[number % len(MARKERS)]
                points.append((drawn.blocks[block], looks[group], runs))
    labels = _labels(study, drawn)
    longest = max(map(len, labels), default=0)
    height = max(3.2, LEGEND_LINE * (len(labels) + spare) + 0.3)
    figure = new_figure(3.9 + 0.068 * max(longest, 14 * spare), height)
    axes = figure.subplots()
    for marker, look, runs in points:
        _point(axes, runs, (across, up), look.colour, marker, drawn)
    axes.set_xlabel(across.label)
    axes.set_ylabel(up.label)
    return figure, axes, drawn


def _point(
    axes: Axes,
    runs: tuple[StudyRun, ...],
    shown: tuple[Metric, Metric],
    colour: str,
    marker: str,
    drawn: Drawn,
) -> None:
    middles, bars = [], []
    for of_axis, reach in zip(shown, (drawn.across, drawn.up), strict=True):
        value = final_interval(runs, of_axis)
        assert value is not None
        middle = value.mean * of_axis.scale
        few = value.half is None or value.seeds < FEWEST_SEEDS
        half = 0.0 if few or value.half is None else value.half * of_axis.scale
        middles.append(middle)
        bars.append(None if few else half)
        reach += [middle - half, middle + half]
    x, y = middles
    axes.errorbar(
        x,
        y,
        xerr=bars[0],
        yerr=bars[1],
        color=colour,
        marker=marker,
        markersize=6,
        elinewidth=0.9,
        linestyle="none",
    )
    if None in bars and len(runs) > 1:
        found = [values_by_seed(runs, of_axis.name) for of_axis in shown]
        seeds = sorted(found[0].keys() & found[1].keys())
        one, other = ([of[seed] * m.scale for seed in seeds] for of, m in zip(found, shown, strict=True))
        axes.plot(one, other, color=colour, marker=marker, markersize=3, linestyle="none", alpha=0.55)
        drawn.across += one
        drawn.up += other


def _labels(study: Study, drawn: Drawn) -> list[str]:
    groups = [group_title(group) for group in drawn.groups if group]
    return groups + [study.block_title(block) for block in drawn.blocks if block]


def _legend(figure: Figure, study: Study, drawn: Drawn, explained: Sequence[Any] = ()) -> None:
    """Name what is drawn, and nothing else."""
    from matplotlib.lines import Line2D

    groups = [
        Line2D(
            [], [], linestyle="none", marker="o", color=look.colour, label=group_title(group), markersize=6
        )
        for group, look in drawn.groups.items()
        if group
    ]
    blocks = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=marker,
            color="#404040",
            markerfacecolor="none",
            label=study.block_title(block),
            markersize=6,
        )
        for block, marker in drawn.blocks.items()
        if block
    ]
    if handles := [*groups, *blocks, *explained]:
        figure.legend(handles=handles, loc="outside right upper")
