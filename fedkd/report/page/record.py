"""What a run folder has to say, read once for a page: of an unfinished run too, and without any plug-in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.errors import UserError
from fedkd.json_text import NotJson, parse_json
from fedkd.models.mix import architecture_names, client_models
from fedkd.plan.evaluated import counted_clients, models_told_apart
from fedkd.plan.graph import USUAL_K
from fedkd.plan.schedule import Schedule
from fedkd.scenario.load import read_scenario, read_toml
from fedkd.scenario.schema import Scenario
from fedkd.tracking.folder import CLIENTS, SCENARIO, SCHEDULE
from fedkd.tracking.recorder import (
    METRICS,
    SUMMARY,
    TIMINGS,
    MetricRow,
    read_epochs,
    read_metrics,
    read_timings,
    read_warnings,
)


@dataclass(frozen=True)
class Labels:
    """Who was dealt what of a task, or of the only one.

    Attributes:
        name: Of the task; empty: there is no stream.
        classes: Names of its classes.
        train: How many training samples of each class every client has, `[N, C]`.
    """

    name: str
    classes: tuple[str, ...]
    train: np.ndarray


@dataclass(frozen=True)
class Series:
    """One metric over rounds.

    Attributes:
        clients: Round to client to value, where it is a number.
        means: Round to the federation's mean, as it was recorded.
    """

    clients: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    means: Mapping[int, float] = field(default_factory=dict)

    @property
    def rounds(self) -> list[int]:
        """The rounds it was recorded in, ascending."""
        return sorted(self.means)


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run as its folder tells of it.

    Attributes:
        folder: The run folder.
        scenario: What was run.
        scenario_text: The same, as `scenario.toml` has it.
        rows: Of `metrics.jsonl`.
        timings: Of `timings.jsonl`.
        warnings: Of `warnings.jsonl`.
        summary: `summary.json`; None: the run is not done.
        schedule: Who is at which task when; None: the file is not there.
        models: Name of every client's architecture.
        labels: Who was dealt what, task by task; empty: it is not told.
        owners: Name of each client's owner; empty: the data name none.
    """

    folder: Path
    scenario: Scenario
    scenario_text: str
    rows: Sequence[MetricRow]
    timings: Sequence[Mapping[str, Any]]
    warnings: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] | None
    schedule: Schedule | None
    models: tuple[str, ...]
    labels: tuple[Labels, ...]
    owners: tuple[str, ...]

    @property
    def title(self) -> str:
        """Name, seed, and the topology of a run without a server."""
        return ", ".join(filter(None, (self.scenario.name, f"seed {self.scenario.seed}", self.topology)))

    @property
    def topology(self) -> str:
        """The graph of a run without a server, such as `ring` or `k-regular (k = 4)`; empty: a server."""
        topology = self.scenario.topology
        if topology.graph == "star":
            return ""
        k = USUAL_K if topology.k is None else topology.k
        told = {"file": Path(topology.path or "").name, "k_regular": f"k = {k}", "random_regular": f"k = {k}"}
        name = topology.graph.replace("_", "-")
        return f"{name} ({told[topology.graph]})" if topology.graph in told else name

    @property
    def done(self) -> bool:
        """Whether all rounds are done."""
        return self.summary is not None

    @cached_property
    def last_round(self) -> int:
        """The last round of which something is recorded; 0: none is."""
        return max((row["round"] for row in self.rows), default=0)

    @cached_property
    def counted(self) -> frozenset[int]:
        """The clients that count in means."""
        return counted_clients(self.scenario)

    @cached_property
    def models_told_apart(self) -> tuple[str, ...]:
        """Those of a client's models whose accuracies are recorded each for itself, whichever answers."""
        return models_told_apart(row["metric"] for row in self.rows)

    @cached_property
    def _series(self) -> dict[tuple[str, str], Series]:
        clients: dict[tuple[str, str], dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        means: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        for row in self.rows:
            value, client, key = row["value"], row["client"], (row["split"], row["metric"])
            if value is None:
                continue
            if client is not None:
                clients[key][row["round"]][client] = value
            elif row["task"] is None:
                means[key][row["round"]] = value
        return {key: Series(clients.get(key, {}), of_all) for key, of_all in means.items()}

    @cached_property
    def fused(self) -> bool:
        """Whether clients were measured before and after fusion: strategies such as `local` have none."""
        return any(
            self.series(split, "fusion_gain").means
            or self.series(split, "accuracy").means != self.series(split, "accuracy_trained").means
            for split in ("global", "local")
        )

    def series(self, split: str, metric: str) -> Series:
        """Return a metric over rounds that is about no single task; empty: it was not recorded."""
        return self._series.get((split, metric), Series())

    @cached_property
    def task_means(self) -> dict[tuple[str, str], dict[tuple[int, int], float]]:
        """Split and metric to (round, task) to the federation's mean, of what is about single tasks."""
        found: dict[tuple[str, str], dict[tuple[int, int], float]] = defaultdict(dict)
        for row in self.rows:
            task, value = row["task"], row["value"]
            if row["client"] is None and task is not None and value is not None:
                found[row["split"], row["metric"]][row["round"], task] = value
        return dict(found)

    def client_name(self, client: int) -> str:
        """Return a client for a person: `client 3 (cnn)`."""
        alike = len(set(self.models)) == 1
        return f"client {client}" if alike else f"client {client} ({self.models[client]})"

    def epochs(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of `epochs.jsonl`; none without the file."""
        continual = self.scenario.continual
        return read_epochs(self.folder) if continual is not None and continual.evaluate_epochs else ()


def read_record(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        UserError: It is none, or what is in it cannot be read.
    """
    path = folder / SCENARIO
    if not path.is_file():
        raise UserError(f"neither a run folder (it has no {SCENARIO}) nor a bench folder", file=str(folder))
    scenario = read_scenario(read_toml(path), file=str(path), folder=folder)
    models = tuple(architecture_names(client_models(scenario)))
    return RunRecord(
        folder=folder,
        scenario=scenario,
        scenario_text=path.read_text(encoding="utf-8"),
        rows=_metric_rows(folder, len(models)),
        timings=read_timings(folder) if (folder / TIMINGS).exists() else [],
        warnings=read_warnings(folder),
        summary=_json(folder / SUMMARY),
        schedule=_schedule(folder / SCHEDULE),
        models=models,
        labels=_labels(folder / CLIENTS, len(models)),
        owners=_owners(folder / CLIENTS, len(models)),
    )


def _metric_rows(folder: Path, clients: int) -> list[MetricRow]:
    """Return the rows of `metrics.jsonl` that are rows; none of a run that has not got so far."""
    if not (folder / METRICS).exists():
        return []
    rows = read_metrics(folder)
    for number, row in enumerate(rows, start=1):
        if not _is_row(row, clients):
            raise UserError(f"line {number} is no row of metrics", file=str(folder / METRICS))
    return rows


def _is_row(row: Any, clients: int) -> bool:
    if not isinstance(row, dict) or not row.keys() >= MetricRow.__annotations__.keys():
        return False
    client, task, value = row["client"], row["task"], row["value"]
    return (
        isinstance(row["round"], int)
        and (client is None or (isinstance(client, int) and 0 <= client < clients))
        and (task is None or isinstance(task, int))
        and isinstance(row["split"], str)
        and isinstance(row["metric"], str)
        and (value is None or isinstance(value, int | float))
    )


def _json(path: Path) -> Any:
    """Return what a JSON file holds; None: it is not there, or holds something else."""
    try:
        value = parse_json(path.read_bytes())
    except (OSError, NotJson):
        return None
    return value if isinstance(value, dict) else None


def _schedule(path: Path) -> Schedule | None:
    try:
        return Schedule.from_json(path.read_text(encoding="utf-8"), file=str(path))
    except (OSError, UnicodeDecodeError, UserError):
        return None


def _owners(path: Path, clients: int) -> tuple[str, ...]:
    """Return the name of each client's owner; nothing where the file names none."""
    table = _json(path)
    found = table.get("owners") if isinstance(table, dict) else None
    return tuple(map(str, found)) if isinstance(found, list) and len(found) == clients else ()


def _labels(path: Path, clients: int) -> tuple[Labels, ...]:
    """Return who was dealt what; nothing where the file is not there or says something else."""
    table = _json(path)
    try:
        found = tuple(
            Labels(str(task["name"]), tuple(map(str, task["classes"])), np.array(task["train"], np.int64))
            for task in (table or {}).get("tasks", [])
        )
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return ()
    return found if all(task.train.shape == (clients, len(task.classes)) for task in found) else ()
