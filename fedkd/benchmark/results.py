"""Results of a bench: tidy files, a table of cells, and the study that is reported."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from fedkd.benchmark.cells import Axis, Cell
from fedkd.benchmark.finished import read_summary
from fedkd.benchmark.worker import CellOutcome
from fedkd.continual import TaskHistory
from fedkd.errors import UserError
from fedkd.plan import build_schedule, listed_metrics
from fedkd.plugins import require_package
from fedkd.report import LISTED_METRICS, OVER_CLIENTS, TEST_SAMPLES, Curve, StudyRun
from fedkd.scenario import Scenario, accuracy_name, evaluation_protocols
from fedkd.storage import atomic_replacement
from fedkd.tracking import METRICS_FILE, read_metrics, read_timings

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_A_TIME = 500_000
CENTRALIZED = "centralized"  # the strategy that trains on all clients' samples in one place
CLOCK = "virtual_seconds_train"  # the metric of simulated time
SECONDS_TO = "seconds_to_"  # prefix of a summary's times to an accuracy
CELLS_NAMED = 3  # cells that a warning names at most


@dataclass(frozen=True)
class FinishedCell:
    """A cell after the bench has run; `relative` are metrics relative to reference learners."""

    cell: Cell
    folder: Path
    outcome: CellOutcome
    summary: Mapping[str, Any] | None
    relative: dict[str, float] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """True if it has a result."""
        return self.summary is not None

    @property
    def final(self) -> dict[str, float]:
        """All its single numbers; empty: it is not done."""
        return {} if self.summary is None else final_values(self.summary) | self.relative


def collect(cells: Sequence[Cell], folder: Path, outcomes: Mapping[Cell, CellOutcome]) -> list[FinishedCell]:
    """Return all cells with their outcomes; a cell without one was done before, or never ran."""
    finished = []
    for cell in cells:
        summary = read_summary(folder / cell.folder_name)
        outcome = outcomes.get(cell) or CellOutcome("pending" if summary is None else "done")
        finished.append(FinishedCell(cell, folder / cell.folder_name, outcome, summary))
    return finished


def chance_line(done: Sequence[FinishedCell]) -> str | None:
    """Return a line about cells whose clients ended a task or the run at chance; None: no such cell."""
    found = [
        (cell.cell.label, len({told["client"] for told in cell.summary["at_chance"]}))
        for cell in done
        if cell.summary is not None and cell.summary.get("at_chance")
    ]
    if not found:
        return None
    named = [f"{label} ({number} client{'s' * (number > 1)})" for label, number in found[:CELLS_NAMED]]
    more = f" and {len(found) - CELLS_NAMED} more" if len(found) > CELLS_NAMED else ""
    return (
        f"warning: in {len(found)} of {len(done)} cells clients were no better than the majority class on"
        f" their training samples: {', '.join(named)}{more}; see at_chance in their summary.json"
    )


def write_results(finished: Sequence[FinishedCell], axes: Sequence[Axis], folder: Path) -> None:
    """Write `results.parquet` and `results.csv`, a few cells at a time, so that memory stays small."""
    require_package("pyarrow", "a table of all values", "report")
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    words = pa.dictionary(pa.int32(), pa.string())
    columns = [(axis.name, _axis_type(axis)) for axis in axes]
    columns += [("seed", pa.int64()), ("hash", words), ("status", words), ("round", pa.int32())]
    columns += [("client", pa.int32()), ("task", pa.int32()), ("split", words), ("metric", words)]
    schema = pa.schema([*columns, ("value", pa.float64())])
    plain = pa.schema([(field.name, _plain_type(field.type)) for field in schema])
    with (
        atomic_replacement(folder / "results.parquet") as columns_file,
        atomic_replacement(folder / "results.csv") as csv_file,
        pa.parquet.ParquetWriter(columns_file, schema, compression="zstd") as parquet,
        pa.csv.CSVWriter(csv_file, plain) as text,
    ):
        for table in _batches(finished, axes, schema):
            parquet.write_table(table)
            text.write_table(table.cast(plain))


def _axis_type(axis: Axis) -> pa.DataType:
    import pyarrow as pa

    kinds = {type(level.value) for level in axis.levels}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.dictionary(pa.int32(), pa.string())


def _plain_type(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _batches(finished: Sequence[FinishedCell], axes: Sequence[Axis], schema: pa.Schema) -> Iterator[pa.Table]:
    import pyarrow as pa

    waiting: list[pa.Table] = []
    rows = 0
    for cell in finished:
        if (table := _cell_table(cell, axes, schema)) is not None:
            waiting.append(table)
            rows += len(table)
        if rows >= ROWS_AT_A_TIME:
            yield pa.concat_tables(waiting).unify_dictionaries()
            waiting, rows = [], 0
    if waiting:
        yield pa.concat_tables(waiting).unify_dictionaries()


def _cell_table(cell: FinishedCell, axes: Sequence[Axis], schema: pa.Schema) -> pa.Table | None:
    import pyarrow as pa

    try:
        recorded = _recorded(cell)
    except (UserError, pa.ArrowException, OSError, TypeError, ValueError):
        if cell.done:
            raise
        return None  # it never began, or its files cannot be read
    constant = [axis_value(cell.cell, axis) for axis in axes]
    constant += [cell.cell.seed, cell.cell.hash[:8], cell.outcome.status]
    columns = [
        pa.array([value], type=_plain_type(field.type)).take(pa.array([0] * len(recorded), type=pa.int32()))
        for value, field in zip(constant, schema, strict=False)
    ]
    columns += [recorded[name] for name in schema.names[len(constant) :]]
    plain = pa.schema([(field.name, _plain_type(field.type)) for field in schema])
    return pa.table(columns, schema=plain).cast(schema)


def _recorded(cell: FinishedCell) -> pa.Table:
    """Return the rows of a cell's `metrics.jsonl`."""
    import pyarrow as pa
    import pyarrow.json

    kinds = {"round": pa.int32(), "client": pa.int32(), "task": pa.int32()}
    kinds |= {"split": pa.string(), "metric": pa.string(), "value": pa.float64()}
    schema = pa.schema(list(kinds.items()))
    if not cell.done:  # the last line may be half-written
        return pa.Table.from_pylist([dict(row) for row in read_metrics(cell.folder)], schema=schema)
    options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    return pa.json.read_json(cell.folder / METRICS_FILE, parse_options=options)


def axis_value(cell: Cell, axis: Axis) -> Any:
    """Return a cell's value on an axis, as files have it: a number, or the label."""
    level = cell.levels[axis.name]
    numeric = all(isinstance(other.value, int | float) for other in axis.levels)
    mixed = len({isinstance(other.value, bool) for other in axis.levels}) > 1
    return level.value if numeric and not mixed else level.label


def write_cells(finished: Sequence[FinishedCell], axes: Sequence[Axis], path: Path) -> None:
    """Write `cells.csv`: one row per cell with its outcome, its final metrics and its costs."""
    measured = ["rounds", "accuracy_before_fusion_local", "accuracy_local", "accuracy_before_fusion_global"]
    measured += ["accuracy_global", "bytes_up", "bytes_down", "seconds"]
    if all(cell.cell.scenario.data.is_regression for cell in finished):
        listed = dict.fromkeys(key for cell in finished for *_, key in listed_metrics(cell.cell.scenario))
        measured = ["rounds", *listed, "bytes_up", "bytes_down", "seconds"]
    if any(cell.cell.scenario.clock is not None for cell in finished):
        reached = [name for cell in finished for name in cell.final if name.startswith(SECONDS_TO)]
        measured += ["virtual_seconds", *dict.fromkeys(reached)]
    if any(cell.cell.scenario.continual is not None for cell in finished):
        measured += ["average_accuracy", "bwt", "forgetting", "intransigence", "gain_over_single"]
        measured += ["stored_bytes_per_task", "peak_bytes"]
    with atomic_replacement(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = [axis.name for axis in axes]
        writer.writerow([*columns, "seed", "hash", "status", *measured, "folder", "error"])
        for cell in finished:
            rounds = {"rounds": cell.cell.scenario.rounds}
            writer.writerow(
                [axis_value(cell.cell, axis) for axis in axes]
                + [cell.cell.seed, cell.cell.hash[:8], cell.outcome.status]
                + [(rounds | cell.final).get(name, "") for name in measured]
                + [f"runs/{cell.cell.folder_name}", cell.outcome.error]
            )


# The study --------------------------------------------------------------------------------------------


def final_values(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return every single number of a summary: over clients, bytes, seconds, continual metrics.

    The mean over clients has the name of the metric, another statistic a name such as `accuracy_local_min`.
    """
    values: dict[str, float] = {"seconds": summary["seconds"]}
    for table in (summary["final"], summary.get("continual") or {}):
        for name, value in table.items():
            found = value if isinstance(value, Mapping) else {"mean": value}
            named = {name: found.get("mean")} | {f"{name}_{over}": found.get(over) for over in OVER_CLIENTS}
            values |= {key: number for key, number in named.items() if isinstance(number, int | float)}
    return values


def directions(done: Sequence[FinishedCell], metrics: Sequence[str]) -> dict[str, Literal["higher", "lower"]]:
    """Return which way is better of the plug-in metrics among `metrics`, and of their statistics."""
    found: dict[str, Literal["higher", "lower"]] = {}
    for cell in done:
        lower = (cell.summary or {}).get("lower_is_better", ())
        for _, metric, key in listed_metrics(cell.cell.scenario):
            if key in LISTED_METRICS:
                continue
            for name in {key, f"{key}_worst_10", f"{key}_min", f"{key}_max"}.intersection(metrics):
                found[name] = "lower" if metric.removesuffix("_before_fusion") in lower else "higher"
    return found


def study_run(cell: FinishedCell, axes: Sequence[Axis]) -> StudyRun:
    """Return a finished cell for tables and figures."""
    assert cell.summary is not None
    of_all, of_tasks = _means(cell)
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in of_all:
        curves.setdefault(f"{row['metric']}_{row['split']}", []).append((row["round"], row["value"]))
    last = {name: curve[-1][1] for name, curve in curves.items() if name != TEST_SAMPLES}
    # A learner's own metrics belong to the task that has just ended.
    said = {f"{row['metric']}_train": row["value"] for row in of_tasks if row["split"] == "train"}
    return StudyRun(
        levels=tuple(cell.cell.levels[axis.name].label for axis in axes),
        seed=cell.cell.seed,
        final=said | last | cell.final | _of_each_task(cell.cell.scenario, of_tasks),
        curves={name: tuple(curve) for name, curve in curves.items() if name != CLOCK},
        traffic=_traffic(cell.folder),
        clock=tuple(curves.get(CLOCK, ())),
        tasks=_over_tasks(cell.cell.scenario, of_tasks),
        is_bound=cell.cell.scenario.fusion.strategy == CENTRALIZED,
    )


def _of_each_task(scenario: Scenario, of_tasks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the final accuracy on each task on the common test set, tasks from 1."""
    if scenario.continual is None:
        return {}
    name = accuracy_name(evaluation_protocols(scenario)[0])
    rows = [row for row in of_tasks if (row["metric"], row["split"]) == (name, "global")]
    return {f"accuracy_task_{row['task'] + 1}": row["value"] for row in rows}


def _means(cell: FinishedCell) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the numeric rows of the federation's means: without a task, and of tasks."""
    with (cell.folder / METRICS_FILE).open(
        "rb"
    ) as lines:  # most are of single clients: the others are parsed
        rows = [json.loads(line) for line in lines if b'"client": null' in line]
    means = [row | {"value": float(row["value"])} for row in rows if row["value"] is not None]
    return [row for row in means if row["task"] is None], [row for row in means if row["task"] is not None]


def _over_tasks(scenario: Scenario, of_tasks: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Return the average accuracy on all tasks so far after each task, on the common test sets."""
    if scenario.continual is None:
        return {}
    schedule = build_schedule(scenario)
    if not schedule.in_step:  # without in_step, no round ends the same task for all
        return {}
    lessons, curves = TaskHistory.of(schedule.course(0)), {}
    for name in map(accuracy_name, evaluation_protocols(scenario)):
        rows = [row for row in of_tasks if (row["metric"], row["split"]) == (name, "global")]
        values = {(row["round"], row["task"]): row["value"] for row in rows}
        points = []
        for learned, at in enumerate(lessons.ends, start=1):
            so_far = [values[at, task] for task in lessons.tasks[:learned] if (at, task) in values]
            if len(so_far) == learned:
                points.append((learned, fmean(so_far)))
        curves[f"average_{name}"] = tuple(points)
    return curves


def _traffic(folder: Path) -> tuple[tuple[int, int], ...]:
    """Return (round, bytes up and down since the start)."""
    rows = [row for row in read_timings(folder) if "round" in row]
    totals = accumulate(row.get("bytes_up", 0) + row.get("bytes_down", 0) for row in rows)
    return tuple(dict(zip((row["round"] for row in rows), totals, strict=True)).items())
