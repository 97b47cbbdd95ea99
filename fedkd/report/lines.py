"""The figures of a bench with lines: a metric over rounds, tasks or bytes, with its spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.report.curves import SeedCurves, curve_over_seeds
from fedkd.report.metrics import Metric
from fedkd.report.study import Curve, Labels, Study, StudyRun, group_title
from fedkd.report.style import LEGEND_LINE, LOG_RATIO, Look, group_looks, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (2.3, 2.1)
"""Width and height of a panel in inches: three fill the width of a page."""
MOST_COLUMNS = 4
LONGEST_LABEL = 34
"""Letters of a label that fit beside one row of panels."""
MOST_BANDS = 5
"""Groups whose bands can be told apart in one panel; of more, each has a panel of its own, or no band."""
CONTEXT = "#BBBBBB"


@dataclass(frozen=True, eq=False)
class Drawing:
    """What is drawn of one group in one panel.

    Attributes:
        found: Its curve, unscaled.
        x: Where; None: it is a level line at its last value.
    """

    found: SeedCurves
    x: np.ndarray | None


Draw = Callable[[Sequence[StudyRun]], Drawing | None]


def over_rounds(study: Study, shown: Metric) -> Figure:
    """Draw a metric over rounds: a panel a block, a line a group, bands are 95 % intervals.

    Of fewer than three seeds each is a thin line instead. Where there are too many groups for bands, and one
    block, every group has a panel of its own, with the others as grey lines.
    """
    return _over(study, shown, lambda run: run.curves.get(shown.name, ()), "round")


def over_tasks(study: Study, shown: Metric) -> Figure:
    """Draw the average over the tasks so far, after each task of a stream; lines and bands as over rounds."""
    return _over(study, shown, lambda run: run.tasks.get(shown.name, ()), "tasks learned")


def _over(study: Study, shown: Metric, curve: Callable[[StudyRun], Curve], what: str) -> Figure:
    from matplotlib.ticker import MaxNLocator

    def draw(runs: Sequence[StudyRun]) -> Drawing | None:
        found = curve_over_seeds([own for run in runs if (own := curve(run))])
        return None if found is None else Drawing(found, found.x)

    figure, panels = _panels(study, shown, draw)
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    figure.supxlabel(what, fontsize=9)
    return figure


def over_traffic(study: Study, shown: Metric) -> Figure:
    """Draw a metric over the bytes sent so far, up and down, by all clients.

    Groups that send nothing have a level line at their last value.
    """
    from matplotlib.ticker import LogLocator

    ends = [run.traffic[-1][1] for run in study.runs if run.traffic and run.traffic[-1][1]]
    unit, scale = _bytes_unit(max(ends))

    def draw(runs: Sequence[StudyRun]) -> Drawing | None:
        recorded = [run for run in runs if run.curves.get(shown.name)]
        found = curve_over_seeds([run.curves[shown.name] for run in recorded])
        if found is None:
            return None
        traffic = _mean_traffic(recorded, found.x) * scale
        return Drawing(found, traffic if traffic[-1] else None)

    figure, panels = _panels(study, shown, draw)
    logarithmic = max(ends) > LOG_RATIO * min(ends)
    for axes in panels:
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=4))
            axes.xaxis.set_major_formatter(lambda value, _: _bytes_text(round(value / scale)))
        else:
            axes.set_xlim(left=0)
    figure.supxlabel(f"sent so far, up and down{'' if logarithmic else f' ({unit})'}", fontsize=9)
    return figure


def over_time(study: Study, shown: Metric) -> Figure:
    """Draw a metric over the simulated time that has passed, a mean over seeds like the metric itself.

    Where some runs are much longer than others, what is short shall not be a stroke at the edge: by decades.
    """
    from matplotlib.ticker import LogLocator

    ends = [run.clock[-1][1] for run in study.runs if run.clock and run.clock[-1][1]]

    def draw(runs: Sequence[StudyRun]) -> Drawing | None:
        recorded = [run for run in runs if run.curves.get(shown.name) and run.clock]
        found = curve_over_seeds([run.curves[shown.name] for run in recorded])
        if found is None:
            return None
        clocks = [dict(run.clock) for run in recorded]
        passed = [np.mean([clock.get(int(round), np.nan) for clock in clocks]) for round in found.x]
        return Drawing(found, np.array(passed))

    figure, panels = _panels(study, shown, draw)
    logarithmic = bool(ends) and max(ends) > LOG_RATIO * min(ends)
    for axes in panels:
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=4))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axes.set_xlim(left=0)
    figure.supxlabel("simulated time (s)", fontsize=9)
    return figure


# Panels -----------------------------------------------------------------------------------------------


def _panels(study: Study, shown: Metric, draw: Draw) -> tuple[Figure, list[Axes]]:
    """Draw every group that has a curve: in the panel of its block, or where these are crowded in its own."""
    drawings = {
        block: {group: drawing for group, runs in groups.items() if (drawing := draw(runs)) is not None}
        for block, groups in study.blocks.items()
    }
    looks = group_looks(study)
    looks = {group: looks[group] for group in looks if any(group in of for of in drawings.values())}
    crowded = max(map(len, drawings.values())) > MOST_BANDS
    if crowded and len(drawings) == 1:
        figure, panels = _panel_a_group(next(iter(drawings.values())), looks, shown)
    else:
        figure, panels = _panel_a_block(study, drawings, looks, shown, bands=not crowded)
    if shown.unit == "%":
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(max(low, -2.0), min(high, 102.0))  # what is at the very end is not cut in half
    tall = len(shown.label) > LONGEST_LABEL
    figure.supylabel(shown.label.replace(", ", ",\n") if tall else shown.label, fontsize=9)
    return figure, panels


def _panel_a_block(
    study: Study,
    drawings: dict[Labels, dict[Labels, Drawing]],
    looks: dict[Labels, Look],
    shown: Metric,
    *,
    bands: bool,
) -> tuple[Figure, list[Axes]]:
    """Draw one panel per block and one line per group, with one legend above all panels."""
    columns = _columns(study)
    rows = ceil(len(drawings) / columns)
    # A single panel has room for its own labels; several share theirs.
    width, height = (3.6, 2.4) if len(drawings) == 1 else (PANEL[0] * columns + 0.4, PANEL[1] * rows + 0.3)
    entries_a_row = max(1, min(len(looks), int(width / 1.3)))
    figure = new_figure(width, height + LEGEND_LINE * ceil(len(looks) / entries_a_row))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (block, groups) in zip(panels, drawings.items(), strict=False):
        axes.set_title(study.block_title(block).replace(", ", "\n"))
        for group, drawing in groups.items():
            _draw(axes, drawing, looks[group], shown, spread=bands)
    for axes in panels[len(drawings) :]:
        axes.remove()
    handles = [_handle(group_title(group), look) for group, look in looks.items() if group]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=entries_a_row)
    return figure, list(panels[: len(drawings)])


def _panel_a_group(
    drawings: dict[Labels, Drawing], looks: dict[Labels, Look], shown: Metric
) -> tuple[Figure, list[Axes]]:
    """Draw one panel per group, its title its name, with the means of all others behind it in grey."""
    columns = min(MOST_COLUMNS, ceil(len(drawings) ** 0.5))
    rows = ceil(len(drawings) / columns)
    figure = new_figure(1.85 * columns + 0.4, 1.7 * rows + 0.4)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (group, drawing) in zip(panels, drawings.items(), strict=False):
        for other in drawings.values():
            if other is not drawing:
                _line(axes, other, other.found.mean * shown.scale, color=CONTEXT, linewidth=0.8, zorder=1)
        _draw(axes, drawing, looks[group], shown, spread=True)
        axes.set_title(group_title(group))
    for axes in panels[len(drawings) :]:
        axes.remove()
    return figure, list(panels[: len(drawings)])


def _draw(axes: Axes, drawing: Drawing, look: Look, shown: Metric, *, spread: bool) -> None:
    """Draw a group's mean, with its band, or with its seeds where they are too few for one."""
    found, scale = drawing.found, shown.scale
    mean = found.mean * scale
    every = max(1, len(mean) // 8)
    style: dict[str, Any] = {"color": look.colour, "linestyle": look.line}
    _line(axes, drawing, mean, marker=look.marker, markevery=every, **style)
    if not spread or drawing.x is None:
        return
    if found.half is not None:
        low, high = mean - found.half * scale, mean + found.half * scale
        if shown.unit == "%":  # an interval of Student's knows nothing of where shares end
            low, high = np.maximum(low, 0.0), np.minimum(high, 100.0)
        axes.fill_between(drawing.x, low, high, color=look.colour, alpha=0.18, linewidth=0)
    elif len(found.seeds) > 1:
        for seed in found.seeds:
            _line(axes, drawing, seed * scale, linewidth=0.6, alpha=0.6, **style)


def _line(axes: Axes, drawing: Drawing, y: np.ndarray, **style: Any) -> None:
    if drawing.x is None:
        level = {key: value for key, value in style.items() if key not in ("marker", "markevery")}
        axes.axhline(y[-1], **level)
    else:
        axes.plot(drawing.x, y, **style)


def _columns(study: Study) -> int:
    """Return how many panels stand side by side: one level of the last block axis each, where that fits."""
    across = len(study.block_axes[-1].levels) if len(study.block_axes) > 1 else 1
    if 1 < across <= MOST_COLUMNS:
        return across
    return ceil(len(study.blocks) / ceil(len(study.blocks) / MOST_COLUMNS))


def _handle(title: str, look: Look) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=look.colour, linestyle=look.line, marker=look.marker, label=title)


# Bytes ------------------------------------------------------------------------------------------------


def _mean_traffic(runs: Sequence[StudyRun], rounds: np.ndarray) -> np.ndarray:
    """Return the bytes sent until the end of each of `rounds`, averaged over seeds [R]."""
    traffic = [dict(run.traffic) for run in runs]
    return np.array([np.mean([sent.get(int(round), 0) for sent in traffic]) for round in rounds])


def _bytes_text(number: float) -> str:
    """Word a power of ten of bytes: ``10 kB``."""
    unit, scale = _bytes_unit(number)
    return f"{number * scale:g} {unit}"


def _bytes_unit(most: float) -> tuple[str, float]:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if most >= size:
            return unit, 1 / size
    return "kB", 1e-3
