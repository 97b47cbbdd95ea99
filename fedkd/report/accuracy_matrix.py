"""The accuracy matrices of a run over a stream of tasks, as one figure."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedkd.continual.outcome import ProtocolOutcome, StreamOutcome
from fedkd.report.metrics import metric
from fedkd.report.style import COLOUR_MAP, house_style, new_figure, readable_on, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

NAME = "accuracy_matrix"
MOST_NUMBERS = 12
"""Tasks up to which every cell has its number, and every task its tick."""
CELL = 0.38
"""Inches."""
LONGEST_NAME = 18
UNTRAINED = "untrained"


def draw_accuracy_matrix(outcome: StreamOutcome, folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Draw the matrices into a run folder as `accuracy_matrix.png`, `.svg` and `.pdf`; return the files.

    Args:
        outcome: What the run reached.
        folder: The run folder.
        names: Of the tasks; empty: they are numbered.
    """
    with house_style():
        return save(accuracy_matrix_figure(outcome, names), folder, NAME)


def accuracy_matrix_figure(outcome: StreamOutcome, names: Sequence[str] = ()) -> Figure:
    """Draw the federation's mean accuracy on every task after every task, under both protocols.

    A panel each, on the common test sets: a row per learned task, the first one of the untrained models; the
    diagonal, where a task has just been learned, is outlined. What was not measured is left white. Where
    clients learn in orders of their own, it is each one's first task, second task, and so on.
    """
    tests = [outcome.test(protocol, "global") for protocol in outcome.protocols]
    labels = _labels(outcome, names)
    side = CELL * max(len(labels) if len(labels) <= MOST_NUMBERS else 10, 4)
    turned = _turned(labels)
    below = 0.075 * max(map(len, labels)) if turned else 0.0
    figure = new_figure(2 * side + 1.9, side + 1.6 + below)
    panels = figure.subplots(1, len(tests), sharey=True, squeeze=False).ravel()
    for axes, test in zip(panels, tests, strict=True):
        image = _draw(axes, test)
        _ticks(axes, labels, turned)
        axes.set_title("\n".join([test.protocol.replace("_", "-"), *_caption(outcome, test)]))
    whose = "" if outcome.in_step else ", in each client's own order"
    panels[0].set_ylabel(f"after task{whose}")
    figure.supxlabel(f"accuracy on task{whose}", fontsize=9)
    bar = figure.colorbar(image, ax=list(panels), label="mean accuracy over clients (%)", pad=0.02)
    bar.outline.set_visible(False)
    return figure


def _labels(outcome: StreamOutcome, names: Sequence[str]) -> list[str]:
    tasks = len(outcome.tests[0].b)
    if not outcome.in_step or not names:
        return [str(place + 1) for place in range(tasks)]
    return [_short(names[task]) for task in outcome.lessons[0].tasks]


def _draw(axes: Axes, test: ProtocolOutcome) -> AxesImage:
    from matplotlib.patches import Rectangle

    shown = 100.0 * np.vstack([test.b, test.R])
    axes.grid(False)
    image = axes.imshow(shown, cmap=COLOUR_MAP, vmin=0.0, vmax=100.0, aspect="auto")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    tasks = len(test.R)
    for task in range(tasks):
        corner = (task - 0.5, task + 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#D55E00", linewidth=1.6))
    if tasks <= MOST_NUMBERS:
        for (row, task), value in np.ndenumerate(shown):
            if not isnan(value):
                axes.text(task, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
                          color=readable_on(image, float(value)))  # fmt: skip
    return image


def _ticks(axes: Axes, labels: Sequence[str], turned: bool) -> None:
    tasks = len(labels)
    every = -(-tasks // MOST_NUMBERS)
    ticks = range(0, tasks, every)
    rotation = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(list(ticks), [labels[task] for task in ticks], **rotation)  # type: ignore[arg-type]
    axes.set_yticks([0, *(task + 1 for task in ticks)], [UNTRAINED, *(str(task + 1) for task in ticks)])


def _turned(labels: Sequence[str]) -> bool:
    return max(map(len, labels)) > 5


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _caption(outcome: StreamOutcome, test: ProtocolOutcome) -> list[str]:
    """Return the means over clients in words: `average accuracy 97.1 %`, `BWT -2.0 points`.

    Not the figures of the mean matrix, where clients have learned different tasks.
    """
    parts = []
    for name in ("average_accuracy", "bwt"):
        shown = metric(name)
        values = [value for value in outcome.values(test, name).values() if not isnan(value)]
        if values:
            value = float(np.mean(values))
            sign = "+" if shown.unit == "points" else ""
            number = f"{round(value * shown.scale, shown.decimals) + 0.0:{sign}.{shown.decimals}f}"
            parts.append(f"{shown.title} {number} {shown.unit}")
    return parts
