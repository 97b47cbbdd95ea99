"""The record of a run folder, finished or not, read without plug-ins."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.errors import UserError
from fedkd.models import architecture_names, client_models
from fedkd.plan import DEFAULT_NEIGHBOURS, Schedule, counted_clients, separately_measured_models
from fedkd.report.metrics import Metric, find_metric, sample_note
from fedkd.scenario import Scenario, read_scenario, read_toml
from fedkd.storage import InvalidJson, parse_json
from fedkd.tracking import (
    CLIENTS_FILE,
    METRICS_FILE,
    SCENARIO_FILE,
    SCHEDULE_FILE,
    SUMMARY_FILE,
    TIMINGS_FILE,
    MetricRow,
    read_epochs,
    read_metrics,
    read_timings,
    read_warnings,
)

SPLITS = {"global": "global test accuracy", "local": "local test accuracy"}
TEST_DATA = {
    "global": "on the common test set",
    "local": "on test data distributed like each client's own",
}

ROW: Any = {"round": int, "task": int | None, "split": str, "metric": str, "value": int | float | None}


def test_data(split: str, scenarios: Iterable[Scenario]) -> str:
    """Word the test samples behind the accuracies of runs."""
    parts = [scenario.evaluate for scenario in scenarios if isinstance(scenario.evaluate, int)]
    return TEST_DATA[split] + (sample_note(parts) if split == "global" else "")


def main_metric(name: str) -> Metric:
    """Return a metric of both splits, titled by its name alone."""
    if name == "accuracy":
        return Metric(name, "accuracy", "%", 100.0, 1, "higher")
    found = find_metric(f"{name}_global")
    return replace(found, name=name, title=found.title.removeprefix("global ").removesuffix(" after fusion"))


def split_titles(main: Metric) -> dict[str, str]:
    """Return the titles of a metric on the splits."""
    return {split: f"{split} test {main.title}" for split in SPLITS}


@dataclass(frozen=True)
class Labels:
    """Training samples of each class and client, of one task."""

    name: str  # of the task; empty: no stream
    classes: tuple[str, ...]
    train: np.ndarray  # [N, C]


@dataclass(frozen=True)
class Series:
    """One metric over rounds."""

    clients: Mapping[int, Mapping[int, float]] = field(default_factory=dict)  # round to client to value
    means: Mapping[int, float] = field(default_factory=dict)  # round to the federation's mean

    @property
    def rounds(self) -> list[int]:
        """The recorded rounds, ascending."""
        return sorted(self.means)


@dataclass(frozen=True, eq=False)
class RunRecord:
    """The content of a run folder."""

    folder: Path
    scenario: Scenario
    scenario_text: str
    rows: Sequence[MetricRow]
    timings: Sequence[Mapping[str, Any]]
    warnings: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] | None  # None: the run is unfinished
    schedule: Schedule | None  # None: there is no file
    models: tuple[str, ...]  # every client's architecture
    labels: tuple[Labels, ...]  # by task; empty: not recorded
    owners: tuple[str, ...]  # of each client; empty: the data name no owners

    @property
    def title(self) -> str:
        """Name and seed, with the topology of a run without a server."""
        return ", ".join(filter(None, (self.scenario.name, f"seed {self.scenario.seed}", self.topology)))

    @property
    def topology(self) -> str:
        """The graph of a run without a server, such as `ring` or `k-regular (k = 4)`; empty: a server."""
        topology = self.scenario.topology
        if topology.graph == "star":
            return ""
        k = DEFAULT_NEIGHBOURS if topology.k is None else topology.k
        told = {"file": Path(topology.path or "").name, "k_regular": f"k = {k}", "random_regular": f"k = {k}"}
        name = topology.graph.replace("_", "-")
        return f"{name} ({told[topology.graph]})" if topology.graph in told else name

    @cached_property
    def main(self) -> Metric:
        """Metric of the page, on the common test set: accuracy, or the first one in regression."""
        return main_metric(self.scenario.main_metric)

    @property
    def moments(self) -> dict[str, str]:
        """Names of the main metric before and after fusion."""
        return {"before": f"{self.main.name}_before_fusion", "after": self.main.name}

    @property
    def done(self) -> bool:
        """Whether the run is finished."""
        return self.summary is not None

    @cached_property
    def last_round(self) -> int:
        """The last recorded round; 0 without any."""
        return max((row["round"] for row in self.rows), default=0)

    @cached_property
    def counted(self) -> frozenset[int]:
        """The clients that count in means."""
        return counted_clients(self.scenario)

    @cached_property
    def models_told_apart(self) -> tuple[str, ...]:
        """Models of a client whose accuracies are recorded separately."""
        return separately_measured_models(row["metric"] for row in self.rows)

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
        """Whether clients were measured before and after fusion; false for `local`."""
        return any(
            self.series(split, "fusion_gain").means
            or self.series(split, self.moments["after"]).means
            != self.series(split, self.moments["before"]).means
            for split in ("global", "local")
        )

    def series(self, split: str, metric: str) -> Series:
        """Return a metric over rounds that concerns no single task; empty if not recorded."""
        return self._series.get((split, metric), Series())

    @cached_property
    def task_means(self) -> dict[tuple[str, str], dict[tuple[int, int], float]]:
        """Split and metric to (round, task) to the federation's mean, for metrics of single tasks."""
        found: dict[tuple[str, str], dict[tuple[int, int], float]] = defaultdict(dict)
        for row in self.rows:
            task, value = row["task"], row["value"]
            if row["client"] is None and task is not None and value is not None:
                found[row["split"], row["metric"]][row["round"], task] = value
        return dict(found)

    def client_name(self, client: int) -> str:
        """Return a client's name for people: `client 3 (cnn)`."""
        alike = len(set(self.models)) == 1
        return f"client {client}" if alike else f"client {client} ({self.models[client]})"

    def epochs(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of `epochs.jsonl`, if the scenario evaluates epochs."""
        continual = self.scenario.continual
        return read_epochs(self.folder) if continual is not None and continual.evaluate_epochs else ()


def read_record(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        UserError: The folder is no run folder, or a file cannot be read.
    """
    path = folder / SCENARIO_FILE
    if not path.is_file():
        raise UserError(
            f"neither a run folder (it has no {SCENARIO_FILE}) nor a bench folder", file=str(folder)
        )
    scenario = read_scenario(read_toml(path), file=str(path), folder=folder)
    models = tuple(architecture_names(client_models(scenario)))
    dealt = _json(folder / CLIENTS_FILE) or {}
    owners = dealt.get("owners")
    return RunRecord(
        folder=folder,
        scenario=scenario,
        scenario_text=path.read_text(encoding="utf-8"),
        rows=_metric_rows(folder, len(models)),
        timings=read_timings(folder) if (folder / TIMINGS_FILE).exists() else [],
        warnings=read_warnings(folder),
        summary=_json(folder / SUMMARY_FILE),
        schedule=_schedule(folder / SCHEDULE_FILE),
        models=models,
        labels=_labels(dealt, len(models)),
        owners=tuple(map(str, owners)) if isinstance(owners, list) and len(owners) == len(models) else (),
    )


def _metric_rows(folder: Path, clients: int) -> list[MetricRow]:
    if not (folder / METRICS_FILE).exists():
        return []
    rows = read_metrics(folder)
    for number, row in enumerate(rows, start=1):
        client = row["client"]
        known = client is None or (isinstance(client, int) and 0 <= client < clients)
        if not known or not all(isinstance(value, ROW.get(key, object)) for key, value in row.items()):
            raise UserError(f"line {number} is not a row of metrics", file=str(folder / METRICS_FILE))
    return rows


def _json(path: Path) -> Any:
    """Return the table in a JSON file; None if there is none."""
    with suppress(OSError, InvalidJson):
        value = parse_json(path.read_bytes())
        return value if isinstance(value, dict) else None
    return None


def _schedule(path: Path) -> Schedule | None:
    with suppress(OSError, UnicodeDecodeError, UserError):
        return Schedule.from_json(path.read_text(encoding="utf-8"), file=str(path))
    return None


def _labels(table: Mapping[str, Any], clients: int) -> tuple[Labels, ...]:
    try:
        found = tuple(
            Labels(str(task["name"]), tuple(map(str, task["classes"])), np.array(task["train"], np.int64))
            for task in table.get("tasks", [])
        )
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return ()
    return found if all(task.train.shape == (clients, len(task.classes)) for task in found) else ()
