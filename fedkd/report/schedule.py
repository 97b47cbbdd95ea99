"""The schedule of a run as a figure and as text: the task of each client in each round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedkd.continual import StreamOutcome
from fedkd.plan import Schedule
from fedkd.report.chart import COLOUR_MAP
from fedkd.report.style import new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "schedule"
ABSENT_SIGN, PRESENT_SIGN = "·", "x"
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
MOST_TICKS = 12
LEGEND_TASKS = 12  # up to this number, a legend names the tasks; above it, a colour bar


def draw_schedule_figure(
    schedule: Schedule, folder: Path, names: Sequence[str] = (), outcome: StreamOutcome | None = None
) -> list[Path]:
    """Draw `schedule.png`, `.svg` and `.pdf` into a run folder; return the files."""
    return write_figure(lambda: schedule_figure(schedule, names, outcome), folder, NAME)


def schedule_figure(
    schedule: Schedule, names: Sequence[str] = (), outcome: StreamOutcome | None = None
) -> Figure:
    """Draw every client's task over rounds, white if it is absent, without sampling and dropout.

    An outcome adds each client's final accuracies on its tasks, on the common test sets, and their mean.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    tasks = 1 + max(span.task or 0 for course in schedule.courses for span in course)
    table = np.full((schedule.clients, schedule.rounds), np.nan)
    for client in range(schedule.clients):
        for span in schedule.course(client):
            table[client, span.first - 1 : span.last] = span.task or 0
    figure = new_figure(6.8, min(1.4 + 0.16 * schedule.clients, 6.0))
    if outcome is None:
        axes, beside = figure.subplots(), None
    else:
        axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    axes.grid(False)
    colours = colormaps[COLOUR_MAP].resampled(max(tasks, 2))
    extent = (0.5, schedule.rounds + 0.5, schedule.clients - 0.5, -0.5)
    image = axes.imshow(
        table, cmap=colours, vmin=-0.5, vmax=max(tasks, 2) - 0.5, aspect="auto", extent=extent,
        interpolation="nearest",
    )  # fmt: skip
    axes.spines[:].set_visible(False)
    axes.set_yticks(range(0, schedule.clients, -(-schedule.clients // MOST_TICKS)))
    axes.set_xlabel("round")
    axes.set_ylabel("client")
    if beside is not None and outcome is not None:
        _draw_ends(beside, outcome, [colours(task) for task in range(max(tasks, 2))])
    if 1 < tasks <= LEGEND_TASKS:
        labels = [names[task] if names else f"task {task}" for task in range(tasks)]
        patches = [Patch(color=colours(task), label=label) for task, label in enumerate(labels)]
        figure.legend(handles=patches, loc="outside upper center", ncols=min(tasks, 6))
    elif tasks > 1:
        figure.colorbar(image, ax=axes, label="task", pad=0.02)
    return figure


def _draw_ends(axes: Axes, outcome: StreamOutcome, colours: Sequence[tuple[float, ...]]) -> None:
    """Draw every client's final accuracies, a dot per task and a line at the mean."""
    test = outcome.test(outcome.evaluation, "global")
    for client, (R, _) in test.clients.items():
        tasks, end = outcome.histories[client].tasks, 100.0 * R[-1]
        axes.vlines(end.mean(), client - 0.4, client + 0.4, colors="black", linewidth=1.2)
        axes.scatter(
            end, [client] * len(tasks), c=[colours[task] for task in tasks], s=14, edgecolors="black",
            linewidths=0.3, zorder=3,
        )  # fmt: skip
    axes.grid(axis="y", visible=False)
    axes.tick_params(left=False)
    axes.set_xlabel("final accuracy (%)")


def schedule_lines(schedule: Schedule, width: int, height: int) -> list[str]:
    """Return a schedule as text: a line per client, a character per round, the task as a digit.

    Longer runs than `width` show every n-th round; more clients than `height` show the first ones.
    """
    every = max(-(-schedule.rounds // width), 1)
    lines = []
    for client in range(min(schedule.clients, height)):
        signs = [_sign(schedule, client, round) for round in range(1, schedule.rounds + 1, every)]
        lines.append(f"client {client:>{len(str(schedule.clients - 1))}}  {''.join(signs)}")
    if schedule.clients > height:
        lines.append(f"… and {schedule.clients - height} more")
    if every > 1:
        lines.append(f"one character per {every} rounds")
    return lines


def _sign(schedule: Schedule, client: int, round: int) -> str:
    if not schedule.is_member(client, round):
        return ABSENT_SIGN
    task = schedule.task(client, round)
    return PRESENT_SIGN if task is None else DIGITS[task % len(DIGITS)]
