"""What a run over a stream of tasks leaves in its folder: accuracy matrices and continual metrics."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from math import isnan
from pathlib import Path

import numpy as np

from fedkd.continual.outcome import StreamOutcome
from fedkd.report.accuracy_matrix import draw_accuracy_matrix
from fedkd.tracking.atomic import write_text_atomically

MATRIX = "accuracy_matrix.csv"
METRICS = "continual_metrics.csv"


def write_continual(outcome: StreamOutcome, folder: Path, names: Sequence[str] = ()) -> None:
    """Write the accuracy matrices, as CSV and figures, and `continual_metrics.csv` into a run folder."""
    write_text_atomically(folder / MATRIX, matrix_csv(outcome))
    write_text_atomically(folder / METRICS, metrics_csv(outcome))
    draw_accuracy_matrix(outcome, folder, names)


def matrix_csv(outcome: StreamOutcome) -> str:
    """Return every accuracy that was measured on a task before the first task and after each, one a line.

    Tasks are counted from 0, each client's in the order in which it learned them. `client` is empty for the
    federation's mean, which is there if all learned the same at the same time; `after_task` for the
    untrained models.
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
    return _csv(("protocol", "split", "client", "after_task", "task", "accuracy"), rows)


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


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
