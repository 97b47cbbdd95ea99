"""``fedkd compare``: two runs, client by client, and the differences of their scenarios."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from math import isnan
from pathlib import Path
from typing import Any

from fedkd.errors import UserError
from fedkd.plan import counted_clients, listed_metrics, separately_measured_models
from fedkd.report import FINAL_ACCURACIES, Interval, find_metric, paired_difference, read_stream_outcome
from fedkd.scenario import Scenario, changed_keys, read_scenario, read_toml, result_relevant_keys, toml_value
from fedkd.simulation.listing import aligned
from fedkd.storage import expand_path
from fedkd.tracking import (
    MISSING_VALUE,
    SCENARIO_FILE,
    format_bytes,
    format_duration,
    format_percent,
    format_points,
    html_preformatted,
    html_table,
    read_metrics,
    read_run_plan,
    read_timings,
)

LABELS = {
    "accuracy_before_fusion_local": "local accuracy before fusion",
    "accuracy_local": "local accuracy after fusion",
    "accuracy_before_fusion_global": "global accuracy before fusion",
    "accuracy_global": "global accuracy after fusion",
}
OF_STREAMS = (
    "average_accuracy_task_incremental",
    "average_accuracy_class_incremental",
    "bwt_task_incremental",
    "forgetting_task_incremental",
)
"""Figures of a stream that are compared if both runs have them."""
OF_CLIENTS = ("seed", "data", "heterogeneity", "population", "clients", "continual.tasks")
"""Keys that define client n: its data and its model."""
TITLES = ("", "A", "B", "B − A", "better in B")


@dataclass(frozen=True)
class Compared:
    """One figure of two runs: means over clients, paired difference B − A, clients better in B.

    `plain` figures are no percentages.
    """

    label: str
    ours: float | None
    theirs: float | None
    difference: Interval | None
    better: int = 0
    plain: bool = False


@dataclass(frozen=True)
class Comparison:
    """Two runs after the last evaluated round of each: changed keys, figures, costs."""

    folders: tuple[Path, Path]
    rounds: tuple[int, int]
    changed: Mapping[str, tuple[Any, Any]]
    figures: tuple[Compared, ...]
    costs: Mapping[str, tuple[str, str]]

    @property
    def alike(self) -> bool:
        """True if client n has the same samples and model in both runs."""
        return not any(f"{key}.".startswith(f"{part}.") for key in self.changed for part in OF_CLIENTS)

    def lines(self) -> Iterator[str]:
        for letter, folder, round in zip("AB", self.folders, self.rounds, strict=True):
            yield f"{letter}  {folder}, round {round}"
        yield ""
        yield from self._differences()
        yield ""
        yield from aligned([TITLES, *self._rows()])
        yield ""
        yield from self._notes()

    def _repr_html_(self) -> str:
        runs = zip("AB", self.folders, self.rounds, strict=True)
        told = "".join(
            f"{letter}: {escape(f'{folder}, round {round}')}<br>" for letter, folder, round in runs
        )
        parts = (
            html_preformatted(self._differences()),
            html_table(TITLES, self._rows()),
            html_preformatted(self._notes()),
        )
        return told + "".join(parts)

    def _differences(self) -> Iterator[str]:
        if not self.changed:
            yield "no key that affects results differs"
        width = max(map(len, self.changed), default=0)
        for key, (ours, theirs) in self.changed.items():
            yield f"{key:<{width}}  {_value(ours)} → {_value(theirs)}"

    def _rows(self) -> list[tuple[str, ...]]:
        rows = [_cells(figure) for figure in self.figures]
        return rows + [(label, ours, theirs, "", "") for label, (ours, theirs) in self.costs.items()]

    def _notes(self) -> Iterator[str]:
        paired = [figure.difference for figure in self.figures if figure.difference is not None]
        if not paired:
            yield "no client was evaluated in both runs"
        elif self.alike:
            yield "B − A: mean difference, paired by client, ± 95 % confidence interval (Student's t)."
            yield "It holds for these clients and this seed only; fedkd bench compares several seeds."
        else:
            yield "B − A: mean difference between clients of the same number, ± 95 % confidence interval."
            yield "Seed, data or models differ: client n of A is not client n of B."


def compare(ours: str | Path, theirs: str | Path) -> Comparison:
    """Compare two runs client by client, each after its last evaluated round."""
    for path in (ours, theirs):
        if not isinstance(path, str | os.PathLike):
            raise UserError(f"must be the path of a run folder, got {type(path).__name__}")
    folders = (expand_path(ours), expand_path(theirs))
    scenarios = tuple(map(_scenario, folders))
    found = [_figures(folder, scenario) for folder, scenario in zip(folders, scenarios, strict=True)]
    (our_round, ours_at), (their_round, theirs_at) = found
    our_costs, their_costs = map(_costs, folders)
    return Comparison(
        folders,
        (our_round, their_round),
        changed_keys(*map(result_relevant_keys, scenarios)),
        tuple(_compared(label, ours_at[label], theirs_at[label]) for label in ours_at if label in theirs_at),
        {label: (cost, their_costs[label]) for label, cost in our_costs.items()},
    )


def _scenario(folder: Path) -> Scenario:
    file = folder / SCENARIO_FILE
    if not file.is_file():
        raise UserError(f"not a run folder: it has no {SCENARIO_FILE}", file=str(folder))
    return read_scenario(read_toml(file), file=str(file), folder=folder)


def _figures(folder: Path, scenario: Scenario) -> tuple[int, dict[str, dict[int, float]]]:
    rows, counted = read_metrics(folder), counted_clients(scenario)
    listed = {key: (split, name) for split, name, key in listed_metrics(scenario)}
    listed = listed if scenario.data.is_regression else {}
    keys = {(split, name): key for split, name, key in FINAL_ACCURACIES}
    keys |= {place: key for key, place in listed.items()}
    of_models = _of_models(separately_measured_models(row["metric"] for row in rows))
    keys |= {place: label for label, place in of_models.items()}
    of_clients = [row for row in rows if row["client"] in counted and (row["split"], row["metric"]) in keys]
    last = max((row["round"] for row in of_clients), default=None)
    if last is None:
        raise UserError("no client has been evaluated yet", file=str(folder))
    found: dict[str, dict[int, float]] = {key: {} for key in (*LABELS, *of_models, *listed)}
    for row in of_clients:
        if row["round"] == last and row["value"] is not None and row["client"] is not None:
            found[keys[row["split"], row["metric"]]][row["client"]] = row["value"]
    if scenario.continual is not None and last == scenario.rounds:
        outcome = read_stream_outcome(read_run_plan(folder), folder)
        known = outcome.figures() if outcome is not None else {}
        for name in OF_STREAMS:
            values = known.get(name, {})
            found[name] = {client: value for client, value in values.items() if not isnan(value)}
    return last, {key: values for key, values in found.items() if values}


def _of_models(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    return {
        f"{LABELS[f'{metric}_{split}']}, {name} model": (split, f"{metric}_{name}")
        for name in names
        for split in ("local", "global")
        for metric in ("accuracy_before_fusion", "accuracy")
    }


def _compared(name: str, ours: Mapping[int, float], theirs: Mapping[int, float]) -> Compared:
    shown = find_metric(name)
    is_accuracy = name in LABELS or name in OF_STREAMS or name.endswith(" model")
    plain = not is_accuracy and shown.unit != "%"
    lower = (plain or name in OF_STREAMS) and shown.better == "lower"
    shared = [client for client in ours if client in theirs]
    better = sum((theirs[c] < ours[c]) if lower else (theirs[c] > ours[c]) for c in shared)
    label = LABELS.get(name) or (name.replace("_", " ") if is_accuracy else shown.title)
    our_mean, their_mean = (sum(some.values()) / len(some) if some else None for some in (ours, theirs))
    return Compared(label, our_mean, their_mean, paired_difference(theirs, ours), better, plain)


def _costs(folder: Path) -> dict[str, str]:
    rows = read_timings(folder)
    totals: dict[str, tuple[str, Callable[[float], str]]] = {
        "up": ("bytes_up", format_bytes),
        "down": ("bytes_down", format_bytes),
        "time": ("seconds", format_duration),
    }
    return {label: word(sum(row.get(field) or 0 for row in rows)) for label, (field, word) in totals.items()}


def _cells(figure: Compared) -> tuple[str, ...]:
    told, better, difference = MISSING_VALUE, MISSING_VALUE, figure.difference
    if figure.plain:
        return _plain_cells(figure)
    if difference is not None:
        half = "" if difference.half is None else f" ± {100 * difference.half:.1f}"
        told = f"{format_points(difference.mean)}{half}"
        better = f"{figure.better} of {difference.seeds}"
    return figure.label, format_percent(figure.ours), format_percent(figure.theirs), told, better


def _plain_cells(figure: Compared) -> tuple[str, ...]:
    told, better, difference = MISSING_VALUE, MISSING_VALUE, figure.difference
    if difference is not None:
        half = "" if difference.half is None else f" ± {difference.half:.3g}"
        told, better = f"{difference.mean:+.4g}{half}", f"{figure.better} of {difference.seeds}"
    ends = (MISSING_VALUE if mean is None else f"{mean:.4g}" for mean in (figure.ours, figure.theirs))
    return figure.label, *ends, told, better


def _value(value: Any) -> str:
    return "absent" if value is None else toml_value(value)
