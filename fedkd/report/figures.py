"""The figures of a bench. Each function draws one, from a `Study` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.report.metrics import Metric
from fedkd.report.scatter import accuracy_against_stored, local_against_global
from fedkd.report.statistics import Interval, interval
from fedkd.report.study import Curve, Study, StudyRun, final_interval, group_title
from fedkd.report.style import (
    COLOUR_MAP,
    LEGEND_LINE,
    LOG_RATIO,
    Look,
    group_looks,
    house_style,
    new_figure,
    readable_on,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (2.3, 2.1)
"""Width and height of a panel in inches: three fill the width of a page."""
MOST_COLUMNS = 4
LONGEST_LABEL = 34
"""Letters of a label that fit beside one row of panels."""


def draw_figures(study: Study, folder: Path, tell: Callable[[str], None] = print) -> list[Path]:
    """Draw every figure that the runs of a study allow, and return the files.

    Args:
        study: What to show.
        folder: Where; made where it is missing.
        tell: Told of a figure that could not be drawn; the others are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with house_style():
        for name, draw in _figures(study):
            try:
                files += save(draw(), folder, name)
            except Exception as error:  # what has run for hours must not fail for a picture
                tell(f"figure {name} could not be drawn: {type(error).__name__}: {error}")
    return files


def _figures(study: Study) -> Iterator[tuple[str, Callable[[], Figure]]]:
    for shown in study.shown:
        curves = [run.curves[shown.name] for run in study.runs if shown.name in run.curves]
        if any(len(curve) > 1 for curve in curves):
            yield f"rounds-{shown.name}", partial(over_rounds, study, shown)
            if any(run.traffic and run.traffic[-1][1] for run in study.runs):
                yield f"traffic-{shown.name}", partial(over_traffic, study, shown)
        two_axes = len(study.block_axes) == len(study.compared_axes) == 1
        if two_axes and any(shown.name in run.final for run in study.runs):
            yield f"heatmap-{shown.name}", partial(heat_map, study, shown)
    for shown in study.shown:
        if any(len(run.tasks.get(shown.name, ())) > 1 for run in study.runs):
            yield f"tasks-{shown.name}", partial(over_tasks, study, shown)
    if any({"accuracy_local", "accuracy_global"} <= run.final.keys() for run in study.runs):
        yield "local-against-global", partial(local_against_global, study)
    if any({"average_accuracy", "stored_bytes_per_task"} <= run.final.keys() for run in study.runs):
        yield "accuracy-against-stored", partial(accuracy_against_stored, study)


# Curves -----------------------------------------------------------------------------------------------


def over_rounds(study: Study, shown: Metric) -> Figure:
    """Draw a metric over rounds: one panel per block, one line per group, bands are 95 % intervals."""
    return _over(study, shown, lambda run: run.curves.get(shown.name, ()), "round")


def over_tasks(study: Study, shown: Metric) -> Figure:
    """Draw the average over the tasks so far, after each task of a stream; lines and bands as over rounds."""
    return _over(study, shown, lambda run: run.tasks.get(shown.name, ()), "tasks learned")


def _over(study: Study, shown: Metric, curve: Callable[[StudyRun], Curve], what: str) -> Figure:
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes, runs: Sequence[StudyRun], **look: Any) -> None:
        points, mean, half = _mean_curve([curve(run) for run in runs], shown)
        _line_with_band(axes, points, mean, half, **look)

    figure, panels = _panels(study, shown, draw, curve)
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

    def curve(run: StudyRun) -> Curve:
        return run.curves.get(shown.name, ())

    def draw(axes: Axes, runs: Sequence[StudyRun], **look: Any) -> None:
        rounds, mean, half = _mean_curve([curve(run) for run in runs], shown)
        traffic = _mean_traffic(runs, rounds) * scale
        if traffic[-1] == 0:
            axes.axhline(mean[-1], color=look["color"], linestyle=look["linestyle"])
        else:
            _line_with_band(axes, traffic, mean, half, **look)

    figure, panels = _panels(study, shown, draw, curve)
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


def _panels(
    study: Study, shown: Metric, draw: Callable[..., None], curve: Callable[[StudyRun], Curve]
) -> tuple[Figure, list[Axes]]:
    """Draw every group that has a curve into the panel of its block, with one legend above all panels."""
    blocks, looks = study.blocks, group_looks(study)
    columns = _columns(study)
    rows = ceil(len(blocks) / columns)
    # A single panel has room for its own labels; several share theirs.
    width, height = (3.6, 2.4) if len(blocks) == 1 else (PANEL[0] * columns + 0.4, PANEL[1] * rows + 0.3)
    entries_a_row = max(1, min(len(looks), int(width / 1.3)))
    figure = new_figure(width, height + LEGEND_LINE * ceil(len(looks) / entries_a_row))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (block, groups) in zip(panels, blocks.items(), strict=False):
        axes.set_title(study.block_title(block).replace(", ", "\n"))
        for group, runs in groups.items():
            recorded = [run for run in runs if curve(run)]
            if recorded:
                look = looks[group]
                draw(axes, recorded, color=look.colour, linestyle=look.line, marker=look.marker)
    for axes in panels[len(blocks) :]:
        axes.remove()
    if shown.unit == "%":
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(max(low, 0.0), min(high, 100.0))
    tall = len(shown.label) > LONGEST_LABEL
    figure.supylabel(shown.label.replace(", ", ",\n") if tall else shown.label, fontsize=9)
    handles = [_handle(group_title(group), look) for group, look in looks.items() if group]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=entries_a_row)
    return figure, list(panels[: len(blocks)])


def _columns(study: Study) -> int:
    """Return how many panels stand side by side: one level of the last block axis each, where that fits."""
    across = len(study.block_axes[-1].levels) if len(study.block_axes) > 1 else 1
    if 1 < across <= MOST_COLUMNS:
        return across
    return ceil(len(study.blocks) / ceil(len(study.blocks) / MOST_COLUMNS))


def _handle(title: str, look: Look) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=look.colour, linestyle=look.line, marker=look.marker, label=title)


def _line_with_band(
    axes: Axes, x: np.ndarray, mean: np.ndarray, half: np.ndarray | None, *, color: str, **look: Any
) -> None:
    axes.plot(x, mean, color=color, markevery=max(1, len(mean) // 8), **look)
    if half is not None:
        axes.fill_between(x, mean - half, mean + half, color=color, alpha=0.18, linewidth=0)


def _mean_curve(found: Sequence[Curve], shown: Metric) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return rounds, means over seeds [R] and half widths [R] (None: one seed), in shown units."""
    curves = [dict(curve) for curve in found]
    rounds = sorted(set.intersection(*(set(curve) for curve in curves)))
    points = [interval([curve[round] for curve in curves]) for round in rounds]
    mean = np.array([point.mean for point in points]) * shown.scale
    if points[0].half is None:
        return np.array(rounds), mean, None
    return np.array(rounds), mean, np.array([point.half for point in points]) * shown.scale


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


# Final values -----------------------------------------------------------------------------------------


def heat_map(study: Study, shown: Metric) -> Figure:
    """Draw final values of a study of two axes: the compared one down, the other across."""
    down, across = study.compared_axes[0], study.block_axes[0]
    cells = {
        (group[0], block[0]): final_interval(runs, shown)
        for block, groups in study.blocks.items()
        for group, runs in groups.items()
    }
    means = np.array([[_mean(cells[row, column]) for column in across.levels] for row in down.levels])
    longest = max(map(len, down.levels))
    figure = new_figure(1.5 + 0.07 * longest + 0.95 * len(across.levels), 1.1 + 0.52 * len(down.levels))
    axes = figure.subplots()
    axes.grid(False)
    image = axes.imshow(means * shown.scale, cmap=COLOUR_MAP, aspect="auto")
    axes.set_xticks(range(len(across.levels)), across.levels)
    axes.set_yticks(range(len(down.levels)), down.levels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(study.title(across))
    axes.set_ylabel(study.title(down))
    for y, row in enumerate(down.levels):
        for x, column in enumerate(across.levels):
            axes.text(x, y, _cell_text(cells[row, column], shown), ha="center", va="center", fontsize=8,
                      color=readable_on(image, means[y, x] * shown.scale))  # fmt: skip
    figure.colorbar(image, ax=axes, label=shown.label, pad=0.02).outline.set_visible(False)
    return figure


def _cell_text(value: Interval | None, shown: Metric) -> str:
    if value is None:
        return "–"
    mean = f"{value.mean * shown.scale:.{shown.decimals}f}"
    return mean if value.half is None else f"{mean}\n± {value.half * shown.scale:.{shown.decimals}f}"


def _mean(value: Interval | None) -> float:
    return float("nan") if value is None else value.mean
