"""The runs of a bench, as tables and figures use them, and the file `study.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from fedkd.errors import UserError
from fedkd.report.chart import BASELINE, Look, looks
from fedkd.report.metrics import Metric, find_metric
from fedkd.report.statistics import Interval, interval
from fedkd.storage import InvalidJson, parse_json, write_text_atomically
from fedkd.tracking import STUDY_FILE

Labels = tuple[str, ...]
Curve = tuple[tuple[int, float], ...]  # pairs of a round, or a number of tasks, and a value

OF_REGRESSION = ("rmse_", "mae_", "r2_")
_TITLES = {"data.partition.alpha": "Dirichlet α", "data.transfer.size": "transfer size"}


@dataclass(frozen=True)
class StudyAxis:
    """An axis of a bench, with the labels of its levels in order."""

    name: str
    levels: Labels


@dataclass(frozen=True)
class StudyRun:
    """One finished run; metrics are means over clients."""

    levels: Labels  # on every axis
    seed: int
    final: Mapping[str, float] = field(default_factory=dict)  # after the last round, and costs of the run
    curves: Mapping[str, Curve] = field(default_factory=dict)  # metric to (round, mean)
    traffic: tuple[tuple[int, int], ...] = ()  # (round, bytes up and down since the start)
    clock: Curve = ()  # (round, simulated seconds since the start); empty without a clock
    tasks: Mapping[str, Curve] = field(default_factory=dict)  # metric to (tasks learned, mean over them)
    is_bound: bool = False  # an upper bound such as `centralized`: shown, not ranked


@dataclass(frozen=True)
class Study:
    """All runs of a bench, and the axes of its comparison.

    Runs that agree on all axes but the compared ones form a *block*; within a block, runs that agree on the
    compared axes too form a *group*, one run per seed.
    """

    name: str
    axes: tuple[StudyAxis, ...]  # in the order of the bench file
    compared: tuple[str, ...]  # names of the axes along which groups are compared
    baseline: Labels  # labels of the baseline on every compared axis; empty without one
    metrics: tuple[str, ...]
    runs: tuple[StudyRun, ...]  # the finished ones
    missing: int = 0  # failed or pending runs
    stopped: int = 0  # runs that a bench stopped on a forecast
    better: Mapping[str, Literal["higher", "lower"]] = field(default_factory=dict)  # of plug-in metrics

    @property
    def block_axes(self) -> tuple[StudyAxis, ...]:
        """The axes that a comparison holds fixed."""
        return tuple(axis for axis in self.axes if axis.name not in self.compared)

    @property
    def compared_axes(self) -> tuple[StudyAxis, ...]:
        """The axes of the comparison."""
        return tuple(axis for axis in self.axes if axis.name in self.compared)

    @property
    def shown(self) -> tuple[Metric, ...]:
        """The shown metrics."""
        found = [
            replace(one, better=self.better.get(one.name, one.better))
            for one in map(find_metric, self.metrics)
        ]
        # A gain of regression is in the unit of its metric.
        numeric = any(name.startswith(OF_REGRESSION) for run in self.runs for name in run.final)
        return tuple(
            replace(one, unit="", scale=1.0, decimals=3)
            if numeric and one.name.startswith("fusion_gain")
            else one
            for one in found
        )

    @cached_property
    def blocks(self) -> dict[Labels, dict[Labels, tuple[StudyRun, ...]]]:
        """Maps block labels and group labels to the group's runs in order of seeds."""
        grouped: dict[tuple[Labels, Labels], list[StudyRun]] = {}
        for run in sorted(self.runs, key=lambda run: run.seed):
            pairs = zip(self.axes, run.levels, strict=True)
            block = tuple(label for axis, label in pairs if axis.name not in self.compared)
            grouped.setdefault((block, self.group_of(run)), []).append(run)
        blocks = product(*(axis.levels for axis in self.block_axes))
        groups = list(product(*(axis.levels for axis in self.compared_axes)))
        return {
            block: {group: tuple(grouped.get((block, group), ())) for group in groups} for block in blocks
        }

    def group_of(self, run: StudyRun) -> Labels:
        """Return a run's labels on the compared axes."""
        pairs = zip(self.axes, run.levels, strict=True)
        return tuple(label for axis, label in pairs if axis.name in self.compared)

    def title(self, axis: StudyAxis) -> str:
        """Return the title of an axis: the last part of its key if that is unique."""
        short = axis.name.rpartition(".")[2]
        if sum(other.name.rpartition(".")[2] == short for other in self.axes) > 1:
            return axis.name
        return _TITLES.get(axis.name, short.replace("_", " "))

    def block_title(self, block: Labels) -> str:
        """Return the title of a block: ``Dirichlet α = 0.1, clients = 10``."""
        pairs = zip(self.block_axes, block, strict=True)
        return ", ".join(f"{self.title(axis)} = {label}" for axis, label in pairs)


def group_title(group: Labels) -> str:
    """Return the title of a group."""
    return ", ".join(group)


def values_by_seed(runs: tuple[StudyRun, ...], name: str) -> dict[int, float]:
    """Return the final values of a metric by seed, for runs that recorded it."""
    return {run.seed: run.final[name] for run in runs if name in run.final}


def final_interval(runs: tuple[StudyRun, ...], shown: Metric) -> Interval | None:
    """Return a metric's final mean over seeds with its interval; None if not recorded."""
    values = values_by_seed(runs, shown.name)
    return interval(list(values.values())) if values else None


def group_looks(study: Study) -> dict[Labels, Look]:
    """Return the look of every group; the baseline is grey, so that others stand out."""
    groups = list(next(iter(study.blocks.values()), {}))
    others = [group for group in groups if not (study.baseline and group == study.baseline)]
    found = dict(zip(others, looks(len(others)), strict=True))
    return {group: found.get(group, BASELINE) for group in groups}


def told_by_colour(looks: Mapping[Labels, Look]) -> bool:
    """Return whether every group has its own colour."""
    return len({look.colour for look in looks.values()}) == len(looks)


def write_study(study: Study, folder: Path) -> None:
    """Write a study into a bench folder, without values that JSON lacks: NaN and infinity."""
    finals = [{name: value for name, value in run.final.items() if isfinite(value)} for run in study.runs]
    runs = tuple(replace(run, final=final) for run, final in zip(study.runs, finals, strict=True))
    table = TypeAdapter(Study).dump_python(replace(study, runs=runs), mode="json")
    if not study.better:
        del table["better"]
    if not study.stopped:
        del table["stopped"]
    write_text_atomically(folder / STUDY_FILE, json.dumps(table, allow_nan=False) + "\n")


def read_study(folder: Path) -> Study:
    """Read the study of a bench folder.

    Raises:
        UserError: The folder has no valid study.
    """
    path = folder / STUDY_FILE
    try:
        study = TypeAdapter(Study).validate_python(parse_json(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        told = "not found; the bench writes it once its cells have run (until then: fedkd report RUN RUN …)"
        raise UserError(told, file=str(path)) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except (InvalidJson, ValidationError):
        raise UserError(
            "is not a study of a bench; run the bench again to rewrite it", file=str(path)
        ) from None
    if any(len(run.levels) != len(study.axes) for run in study.runs):
        raise UserError("is not a study of a bench; run the bench again to rewrite it", file=str(path))
    return study
