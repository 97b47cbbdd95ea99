"""The figures of a bench. Each function draws one, from a `Study` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedkd.report.curves import FEWEST_SEEDS
from fedkd.report.front import BOTH_MOMENTS, FEWEST_ON_A_CURVE, local_global_front
from fedkd.report.lines import over_rounds, over_tasks, over_time, over_traffic
from fedkd.report.metrics import Metric
from fedkd.report.scatter import accuracy_against_stored, local_against_global
from fedkd.report.statistics import Interval
from fedkd.report.study import Study, final_interval
from fedkd.report.style import (
    COLOUR_MAP,
    MARKERS,
    group_looks,
    house_style,
    new_figure,
    readable_on,
    save,
    told_by_colour,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE_MOMENT = frozenset({"accuracy_local", "accuracy_global"})
"""What has to be recorded for the plane of both accuracies after guidance."""


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
            if study.has_clock:
                yield f"time-{shown.name}", partial(over_time, study, shown)
        two_axes = len(study.block_axes) == len(study.compared_axes) == 1
        if two_axes and any(shown.name in run.final for run in study.runs):
            yield f"heatmap-{shown.name}", partial(heat_map, study, shown)
    for shown in study.shown:
        if any(len(run.tasks.get(shown.name, ())) > 1 for run in study.runs):
            yield f"tasks-{shown.name}", partial(over_tasks, study, shown)
    on_plane = {study.group_of(run) for run in study.runs if run.final.keys() >= ONE_MOMENT}
    groups = {study.group_of(run) for run in study.runs if run.final.keys() >= BOTH_MOMENTS}
    has_front = len(groups) >= FEWEST_ON_A_CURVE
    # The front has a panel a block and markers besides colours: it stands for the plane if these are too few.
    crowded = not told_by_colour(group_looks(study)) or len(study.blocks) > len(MARKERS)
    if on_plane and not (crowded and has_front and groups == on_plane):
        yield "local-against-global", partial(local_against_global, study)
    if has_front:
        yield "front", partial(local_global_front, study)
    if any({"average_accuracy", "stored_bytes_per_task"} <= run.final.keys() for run in study.runs):
        yield "accuracy-against-stored", partial(accuracy_against_stored, study)


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
    known = means[~np.isnan(means)]
    if known.size and known.max() > known.min():
        figure.colorbar(image, ax=axes, label=shown.label, pad=0.02).outline.set_visible(False)
    else:  # a scale of one value says nothing that the cells do not
        axes.set_title(shown.label)
    return figure


def _cell_text(value: Interval | None, shown: Metric) -> str:
    if value is None:
        return "–"
    mean = f"{value.mean * shown.scale:.{shown.decimals}f}"
    if value.half is None or value.seeds < FEWEST_SEEDS:
        return mean
    return f"{mean}\n± {value.half * shown.scale:.{shown.decimals}f}"


def _mean(value: Interval | None) -> float:
    return float("nan") if value is None else value.mean
