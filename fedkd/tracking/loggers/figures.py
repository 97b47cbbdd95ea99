"""Figures of a round for loggers, from its report and the run folder."""

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

import numpy as np

from fedkd.plan import build_schedule
from fedkd.scenario import Scenario
from fedkd.tracking.events import RoundReport
from fedkd.tracking.loggers.logger import Figures
from fedkd.tracking.neighbours import read_neighbours
from fedkd.tracking.recorder import METRICS_FILE, read_metrics
from fedkd.tracking.task_matrix import TaskMatrix, make_task_matrices

OF_CLIENTS = ("accuracy", "accuracy_before_fusion", "effective_neighbours")  # shown as histograms
WEIGHTS = "fusion/weights"
Span = tuple[int, int]  # start and end of a round's rows in `metrics.jsonl`, in bytes


class FigureMaker:
    """Make the figures of each round, with pictures every `pictures_every` rounds (0: never)."""

    def __init__(self, scenario: Scenario, folder: Path, resumed_from: int, pictures_every: int) -> None:
        self._folder = folder
        self._pictures_every = pictures_every
        self._schedule = build_schedule(scenario)
        self._matrices: list[TaskMatrix] = make_task_matrices(scenario)
        if self._matrices and resumed_from:
            rows = [row for row in read_metrics(folder) if row["round"] <= resumed_from]
            for matrix in self._matrices:
                matrix.recall(rows)

    def figures(self, report: RoundReport, span: Span) -> Figures:
        """Return the figures of a round, whose rows are in `span` of `metrics.jsonl`."""
        values, of_task = values_of(report), dict[str, float]()
        heat_maps, histograms = dict[str, np.ndarray](), dict[str, np.ndarray]()
        ends = report.task is not None and bool(self._schedule.ending(report.round))
        every = self._pictures_every
        for matrix in self._matrices:
            if report.task is None or not matrix.add(report):
                continue
            so_far = {f"{name}_{matrix.protocol}": value for name, value in matrix.so_far().items()}
            values |= {f"continual/{name}": value for name, value in so_far.items()}
            if ends:
                of_task |= {f"by_task/{name}": value for name, value in so_far.items()}
                if every:
                    heat_maps[f"continual/accuracy_matrix_{matrix.protocol}"] = _square(matrix)
        if every and (report.round in (1, report.rounds) or report.round % every == 0):
            neighbours = read_neighbours(self._folder, report.round)
            if neighbours is not None and neighbours.senders is None:
                heat_maps[WEIGHTS] = neighbours.weights
            histograms = _over_clients(self._folder / METRICS_FILE, span, report.round)
        return Figures(report.round, report.task, values, of_task, heat_maps, histograms)


def values_of(report: RoundReport) -> dict[str, float]:
    """Return the measured scalars of a round by name."""
    named: Mapping[str, float | None] = {
        **report.metrics,
        "local/accuracy": report.accuracy_local,
        "global/accuracy": report.accuracy_global,
        "train/loss": report.train_loss,
        "fusion/gain": report.fusion_gain,
        "fusion/effective_neighbours": report.effective_neighbours,
        "bytes/up": report.bytes_up,
        "bytes/down": report.bytes_down,
        "seconds": report.seconds,
    }
    return {name: value for name, value in named.items() if value is not None}


def _square(matrix: TaskMatrix) -> np.ndarray:
    """Return the accuracy matrix `[T, T]` so far, NaN where it was not measured."""
    found = np.full((matrix.tasks, matrix.tasks), np.nan)
    for learned, accuracies in matrix.rows().items():
        found[learned] = [np.nan if value is None else value for value in accuracies]
    return found


def _over_clients(path: Path, span: Span, round: int) -> dict[str, np.ndarray]:
    """Return the measured values of a round's clients, by `split/metric`."""
    start, stop = span
    if stop <= start:
        return {}
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read(stop - start).splitlines()
    wanted = tuple(f'"metric": "{name}"'.encode() for name in OF_CLIENTS)
    found: dict[str, list[float]] = {}
    for line in lines:
        if b'"client": null' in line or not any(name in line for name in wanted):
            continue
        row = json.loads(line)
        if row["round"] == round and row["value"] is not None and isfinite(row["value"]):
            found.setdefault(f"{row['split']}/{row['metric']}", []).append(row["value"])
    return {f"clients/{name}": np.array(values) for name, values in found.items()}
