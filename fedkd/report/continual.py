"""What a run over a stream of tasks leaves in its folder: accuracy matrices and continual metrics."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path

import numpy as np

from fedkd.continual.metrics import Array
from fedkd.continual.outcome import ProtocolOutcome, StreamOutcome
from fedkd.report.accuracy_matrix import draw_accuracy_matrix
from fedkd.tracking.atomic import write_text_atomically

MATRIX = "accuracy_matrix.csv"
METRICS = "continual_metrics.csv"


def write_continual(outcome: StreamOutcome, folder: Path, names: Sequence[str] = ()) -> None:
    """Write `accuracy_matrix.csv`, `.png`, `.svg` and `.pdf` and `continual_metrics.csv` into a run folder.

    Args:
        outcome: What the run reached.
        folder: The run folder.
        names: Of the tasks; empty: they are numbered.
    """
    write_text_atomically(folder / MATRIX, matrix_csv(outcome))
    write_text_atomically(folder / METRICS, metrics_csv(outcome))
    draw_accuracy_matrix(outcome, folder, names)


def matrix_csv(outcome: StreamOutcome) -> str:
    """Return every accuracy that was measured on a task before the first task and after each, one a line.

    Tasks are counted from 0, each client's in the order in which it learned them. `client` is empty for the
    federation's mean, which is there if all learned the same at the same time; `after_task` for the
    untrained models.
    """
    return _csv(
        ("protocol", "split", "client", "after_task", "task", "accuracy"),
        (
            (test.protocol, test.split, client, *cell)
            for test in outcome.tests
            for client, tasks, (R, b) in _matrices(outcome, test)
            for cell in _cells(tasks, R, b)
        ),
    )


def _matrices(
    outcome: StreamOutcome, test: ProtocolOutcome
) -> Iterator[tuple[int | str, Sequence[int], tuple[Array, Array]]]:
    """Yield R and b of the federation, where there are any, and of every client, with their tasks."""
    if outcome.in_step:
        yield "", outcome.histories[0].tasks, (test.R, test.b)
    for client, matrices in test.clients.items():
        yield client, outcome.histories[client].tasks, matrices


def _cells(tasks: Sequence[int], R: Array, b: Array) -> Iterator[tuple[int | str, int, float]]:
    for (row, column), value in np.ndenumerate(np.vstack([b, R])):
        if not isnan(value):
            yield tasks[row - 1] if row else "", tasks[column], float(value)


def metrics_csv(outcome: StreamOutcome) -> str:
    """Return every continual metric of every client that counts, one a line; empty: it has no value."""
    return _csv(
        ("protocol", "split", "client", "metric", "value"),
        (
            (test.protocol, test.split, client, name, "" if isnan(value) else value)
            for test in outcome.tests
            for client in sorted(outcome.counted)
            for name, value in test.metrics[client].items()
        ),
    )


def _csv(columns: Sequence[str], rows: Iterator[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
