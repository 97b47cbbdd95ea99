"""Figures of one final value against another: a colour per group, a marker per block, 95 % intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedkd.report.metrics import Metric, metric
from fedkd.report.study import Study, final_interval, group_title
from fedkd.report.style import LEGEND_LINE, LOG_RATIO, MARKERS, group_looks, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def local_against_global(study: Study) -> Figure:
    """Draw final local against global accuracy."""
    from matplotlib.lines import Line2D

    across, up = metric("accuracy_global"), metric("accuracy_local")
    equal = Line2D([], [], color="#A0A0A0", linestyle=":", label="local = global")
    figure, axes = _scatter(study, across, up, equal)
    lowest = max(0.0, min(axes.get_xlim()[0], axes.get_ylim()[0]))
    axes.plot([lowest, 100], [lowest, 100], color="#A0A0A0", linestyle=":", linewidth=1, zorder=0)
    axes.set_xlim(_around_means(study, across))
    axes.set_ylim(_around_means(study, up))
    return figure


def accuracy_against_stored(study: Study) -> Figure:
    """Draw the average accuracy after a stream of tasks against what learners keep of each task, in bytes.

    Both as every scenario's own protocol has it. Learners that keep nothing stand at the left.
    """
    across, up = metric("stored_bytes_per_task"), metric("average_accuracy")
    figure, axes = _scatter(study, across, up)
    stored = [run.final[across.name] * across.scale for run in study.runs if across.name in run.final]
    kept = [size for size in stored if size > 0]
    if kept and max(kept) > LOG_RATIO * min(kept):
        # Zero has a place on this scale, below the least that anybody keeps.
        axes.set_xscale("symlog", linthresh=min(kept))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlim(left=0 if min(stored, default=0) > 0 else None)
    axes.set_ylim(_around_means(study, up))
    return figure


def _scatter(study: Study, across: Metric, up: Metric, *explained: Any) -> tuple[Figure, Axes]:
    looks = group_looks(study)
    handles = [*_handles(study), *explained]
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    figure = new_figure(3.9 + 0.068 * longest, max(3.2, LEGEND_LINE * len(handles) + 0.3))
    axes = figure.subplots()
    for number, groups in enumerate(study.blocks.values()):
        for group, runs in groups.items():
            x, y = final_interval(runs, across), final_interval(runs, up)
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
    axes.set_xlabel(across.label)
    axes.set_ylabel(up.label)
    if handles:
        figure.legend(handles=handles, loc="outside right upper")
    return figure, axes


def _around_means(study: Study, shown: Metric) -> tuple[float, float]:
    """Return limits that show all percentages with a margin; long bars of few seeds may run out of them."""
    values = [shown.scale * run.final[shown.name] for run in study.runs if shown.name in run.final]
    margin = max(2.0, 0.15 * (max(values) - min(values)))
    return max(0.0, min(values) - margin), min(100.0, max(values) + margin)


def _handles(study: Study) -> list[Any]:
    from matplotlib.lines import Line2D

    colours = [
        Line2D(
            [], [], linestyle="none", marker="o", color=look.colour, label=group_title(group), markersize=6
        )
        for group, look in group_looks(study).items()
        if group
    ]
    markers = [
        Line2D([], [], linestyle="none", marker=MARKERS[number % len(MARKERS)], color="#404040",
               markerfacecolor="none", label=study.block_title(block), markersize=6)
        for number, block in enumerate(study.blocks) if block
    ]  # fmt: skip
    return [*colours, *markers]
