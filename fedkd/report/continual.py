"""Accuracy matrices and continual metrics of a run over a stream of tasks, as files and as a chart."""

from collections.abc import Iterable, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.continual import ProtocolOutcome, StreamOutcome, stream_outcome
from fedkd.fusion import FusionStrategy
from fedkd.plan import Schedule, counted_clients, models_after_fusion
from fedkd.report.chart import Chart, Matrix, Panel
from fedkd.report.metrics import find_metric
from fedkd.report.style import MOST_NUMBERS, draw_chart, write_figure
from fedkd.report.tables import csv_text
from fedkd.scenario import Scenario
from fedkd.storage import write_text_atomically
from fedkd.tracking import MetricRow, protocol_name

MATRIX = "accuracy_matrix.csv"
METRICS = "continual_metrics.csv"
FIGURE = "accuracy_matrix"
LONGEST_NAME = 24


def outcome_of_rows(
    rows: Iterable[MetricRow],
    scenario: Scenario,
    schedule: Schedule,
    strategy: FusionStrategy | None = None,
    **more: Any,
) -> StreamOutcome:
    """Return the outcome of a stream from its rows; `more` goes to `stream_outcome`."""
    counted, models = counted_clients(scenario), models_after_fusion(scenario, schedule, strategy)
    return stream_outcome(rows, scenario, schedule.every_course(), counted=counted, models=models, **more)


def write_continual(outcome: StreamOutcome, folder: Path, names: Sequence[str] = ()) -> None:
    """Write the accuracy matrices, as CSV and figures, and `continual_metrics.csv` into a run folder."""
    write_text_atomically(folder / MATRIX, matrix_csv(outcome))
    write_text_atomically(folder / METRICS, metrics_csv(outcome))
    draw_accuracy_matrix(outcome, folder, names)


def matrix_csv(outcome: StreamOutcome) -> str:
    """Return every accuracy on a task, before the first task and after each, one a line.

    Tasks are numbered from 0, in each client's order of learning. `client` is empty for the federation's
    mean, which exists if clients are in step. `after_task` is empty for untrained models.
    """
    rows: list[Sequence[object]] = []
    for test in outcome.tests:
        found = [(client, outcome.histories[client].tasks, R, b) for client, (R, b) in test.clients.items()]
        mean = [("", outcome.histories[0].tasks, test.R, test.b)] if outcome.in_step else []
        for client, tasks, R, b in (*mean, *found):
            for (row, column), value in np.ndenumerate(np.vstack([b, R])):
                if not isnan(value):
                    after = tasks[row - 1] if row else ""
                    rows.append((test.protocol, test.split, client, after, tasks[column], float(value)))
    return csv_text(("protocol", "split", "client", "after_task", "task", "accuracy"), rows)


def metrics_csv(outcome: StreamOutcome) -> str:
    """Return every continual metric of every counted client, one a line; undefined values are empty."""
    return csv_text(
        ("protocol", "split", "client", "metric", "value"),
        (
            (test.protocol, test.split, client, name, "" if isnan(value) else value)
            for test in outcome.tests
            for client in sorted(outcome.counted)
            for name, value in test.metrics[client].items()
        ),
    )


def draw_accuracy_matrix(outcome: StreamOutcome, folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Draw `accuracy_matrix.png`, `.svg` and `.pdf` into a run folder; return the files."""
    return write_figure(lambda: draw_chart(accuracy_matrix(outcome, names)), folder, FIGURE)


def accuracy_matrix(outcome: StreamOutcome, names: Sequence[str] = ()) -> Chart:
    """Return the mean accuracy on every task after every task, a panel per protocol.

    The first row is of untrained models; the diagonal is outlined. If orders differ, rows are each client's
    first task, second task, and so on. Without `names`, tasks are numbered.
    """
    labels = task_labels(outcome, names)
    order = "" if outcome.in_step else ", in each client's own order"
    panels = []
    for test in (outcome.test(protocol, "global") for protocol in outcome.protocols):
        shown, after = 100.0 * np.vstack([test.b, test.R]), ["untrained", *labels]
        texts = [["" if isnan(value) else f"{value:.0f}" for value in row] for row in shown]
        unit, diagonal = "mean accuracy over clients (%)", [(task + 1, task) for task in range(len(labels))]
        few = texts if len(labels) <= MOST_NUMBERS else None
        matrix = Matrix(shown, after, labels, unit, few, (0.0, 100.0), diagonal)
        rows = [
            [after[row], labels[column], None if isnan(value) else value / 100]
            for (row, column), value in np.ndenumerate(shown)
        ]
        title = "\n".join([protocol_name(test.protocol), *_caption(outcome, test)])
        axes = f"accuracy on task{order}", f"after task{order}"
        panels.append(Panel(title, [matrix], *axes, ("after", "task", "accuracy"), rows))
    caption = "Mean over clients, on the common test sets of tasks."
    return Chart(FIGURE, "Accuracy matrix", panels, len(panels), caption)


def task_labels(outcome: StreamOutcome, names: Sequence[str] = ()) -> list[str]:
    """Return distinct names of the tasks in the order of learning; numbers if orders differ."""
    tasks = range(len(outcome.tests[0].b))
    if not outcome.in_step or not names:
        return [str(place + 1) for place in tasks]
    found = [names[task] if task < len(names) else f"task {task}" for task in outcome.histories[0].tasks]
    short = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in found]
    return short if len(set(short)) == len(short) else [f"{n + 1}. {short[n]}" for n in tasks]


def _caption(outcome: StreamOutcome, test: ProtocolOutcome) -> list[str]:
    """Return the means over clients as text: `average accuracy 97.1 %`, `BWT -2.0 points`."""
    parts = []
    for name in ("average_accuracy", "bwt"):
        shown = find_metric(name)
        values = [value for value in outcome.values(test, name).values() if not isnan(value)]
        if values:
            value = float(np.mean(values))
            sign = "+" if shown.unit == "points" else ""
            number = f"{round(value * shown.scale, shown.decimals) + 0.0:{sign}.{shown.decimals}f}"
            parts.append(f"{shown.title} {number} {shown.unit}")
    return parts
