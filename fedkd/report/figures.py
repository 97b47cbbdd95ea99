"""The figures of a bench. Each function draws one, from a `Study` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.report.metrics import Metric, metric
from fedkd.report.statistics import Interval, interval
from fedkd.report.study import Study, StudyRun, group_title, values_by_seed
from fedkd.report.style import (
    COLOUR_MAP,
    MARKERS,
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
LEGEND_LINE = 0.2
"""Inches that a line of a legend takes."""
LOG_RATIO = 20
"""From this ratio of the largest traffic to the smallest, the axis is logarithmic."""


def draw_figures(study: Study, folder: Path) -> list[Path]:
    """Draw every figure that the runs of a study allow, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with house_style():
        for name, figure in _figures(study):
            files += save(figure, folder, name)
    return files


def _figures(study: Study) -> Iterator[tuple[str, Figure]]:
    for shown in study.shown:
        curves = [run.curves[shown.name] for run in study.runs if shown.name in run.curves]
        if any(len(curve) > 1 for curve in curves):
            yield f"rounds-{shown.name}", over_rounds(study, shown)
            if any(run.traffic and run.traffic[-1][1] for run in study.runs):
                yield f"traffic-{shown.name}", over_traffic(study, shown)
        two_axes = len(study.block_axes) == len(study.compared_axes) == 1
        if two_axes and any(shown.name in run.final for run in study.runs):
            yield f"heatmap-{shown.name}", heat_map(study, shown)
    if any({"accuracy_local", "accuracy_global"} <= run.final.keys() for run in study.runs):
        yield "local-against-global", local_against_global(study)


# Curves -----------------------------------------------------------------------------------------------


def over_rounds(study: Study, shown: Metric) -> Figure:
    """Draw a metric over rounds: one panel per block, one line per group, bands are 95 % intervals."""

    def draw(axes: Axes, runs: Sequence[StudyRun], **look: Any) -> None:
        rounds, mean, half = _mean_curve(runs, shown)
        _line_with_band(axes, rounds, mean, half, **look)

    figure, panels = _panels(study, shown, draw)
    from matplotlib.ticker import MaxNLocator

    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    figure.supxlabel("round", fontsize=9)
    return figure


def over_traffic(study: Study, shown: Metric) -> Figure:
    """Draw a metric over the bytes sent so far, up and down, by all clients.

    Groups that send nothing have a level line at their last value.
    """
    from matplotlib.ticker import LogLocator

    ends = [run.traffic[-1][1] for run in study.runs if run.traffic and run.traffic[-1][1]]
    unit, scale = _bytes_unit(max(ends))

    def draw(axes: Axes, runs: Sequence[StudyRun], **look: Any) -> None:
        rounds, mean, half = _mean_curve(runs, shown)
        traffic = _mean_traffic(runs, rounds) * scale
        if traffic[-1] == 0:
            axes.axhline(mean[-1], color=look["color"], linestyle=look["linestyle"])
        else:
            _line_with_band(axes, traffic, mean, half, **look)

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


def _panels(study: Study, shown: Metric, draw: Callable[..., None]) -> tuple[Figure, list[Axes]]:
    """Draw every group into the panel of its block, with one legend above all panels."""
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
            recorded = [run for run in runs if run.curves.get(shown.name)]
            if recorded:
                look = looks[group]
                draw(axes, recorded, color=look.colour, linestyle=look.line, marker=look.marker)
    for axes in panels[len(blocks) :]:
        axes.remove()
    if shown.unit == "%":
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(max(low, 0.0), min(high, 100.0))
    figure.supylabel(shown.label, fontsize=9)
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


def _mean_curve(runs: Sequence[StudyRun], shown: Metric) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return rounds, means over seeds [R] and half widths [R] (None: one seed), in shown units."""
    curves = [dict(run.curves[shown.name]) for run in runs]
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
        (group[0], block[0]): _final(runs, shown)
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


def local_against_global(study: Study) -> Figure:
    """Draw final local against global accuracy: a colour per group, a marker per block, 95 % intervals."""
    across, up = metric("accuracy_global"), metric("accuracy_local")
    looks = group_looks(study)
    handles = _scatter_handles(study)
    longest = max(len(handle.get_label()) for handle in handles)
    figure = new_figure(3.9 + 0.068 * longest, max(3.2, LEGEND_LINE * len(handles) + 0.3))
    axes = figure.subplots()
    for number, groups in enumerate(study.blocks.values()):
        for group, runs in groups.items():
            x, y = _final(runs, across), _final(runs, up)
            if x is None or y is None:
                continue
            axes.errorbar(
                x.mean * across.scale,
                y.mean * up.scale,
                xerr=None if x.half is None else x.half * across.scale,
                yerr=None if y.half is None else y.half * up.scale,
                color=looks[group].colour,
                marker=MARKERS[number % len(MARKERS)],
                markersize=6,
                elinewidth=0.9,
                linestyle="none",
            )
    lowest = max(0.0, min(axes.get_xlim()[0], axes.get_ylim()[0]))
    axes.plot([lowest, 100], [lowest, 100], color="#A0A0A0", linestyle=":", linewidth=1, zorder=0)
    _clip_to_data(axes, study)
    axes.set_xlabel(across.label)
    axes.set_ylabel(up.label)
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _clip_to_data(axes: Axes, study: Study) -> None:
    """Show all means with a margin; long bars of few seeds may run out of the picture."""
    for name, set_limits in (("accuracy_global", axes.set_xlim), ("accuracy_local", axes.set_ylim)):
        values = [100 * run.final[name] for run in study.runs if name in run.final]
        margin = max(2.0, 0.15 * (max(values) - min(values)))
        set_limits(max(0.0, min(values) - margin), min(100.0, max(values) + margin))


def _scatter_handles(study: Study) -> list[Any]:
    from matplotlib.lines import Line2D

    colours = [
        Line2D(
            [], [], linestyle="none", marker="o", color=look.colour, label=group_title(group), markersize=6
        )
        for group, look in group_looks(study).items()
    ]
    markers = [
        Line2D([], [], linestyle="none", marker=MARKERS[number % len(MARKERS)], color="#404040",
               markerfacecolor="none", label=study.block_title(block), markersize=6)
        for number, block in enumerate(study.blocks) if block
    ]  # fmt: skip
    equal = Line2D([], [], color="#A0A0A0", linestyle=":", label="local = global")
    return [*colours, *markers, equal]


def _final(runs: Iterable[StudyRun], shown: Metric) -> Interval | None:
    values = values_by_seed(tuple(runs), shown.name)
    return interval(list(values.values())) if values else None


def _mean(value: Interval | None) -> float:
    return float("nan") if value is None else value.mean
