"""The results of a finished run: `summary.json`, figures, and the page."""

import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.continual import StreamOutcome
from fedkd.models import architecture_names
from fedkd.plan import Plan, counted_clients, listed_metrics, separate_model_accuracies
from fedkd.plugins import Omissions, package_versions
from fedkd.report.continual import outcome_of_rows, write_continual
from fedkd.report.fairness import fairness
from fedkd.report.metrics import find_metric
from fedkd.report.schedule import draw_schedule_figure
from fedkd.report.statistics import interval
from fedkd.report.topology import draw_graph_figure
from fedkd.storage import write_json_atomically
from fedkd.tracking import (
    REPORT_FILE,
    SUMMARY_FILE,
    MetricRow,
    RunObserver,
    RunReport,
    Totals,
    read_epochs,
    read_metrics,
    read_warnings,
)

log = logging.getLogger("fedkd.report")


def finish_run(
    plan: Plan,
    folder: Path,
    totals: Totals,
    observer: RunObserver,
    tasks: Sequence[str] = (),
    *,
    page: bool = True,
) -> dict[str, Any]:
    """Write the summary, figures and page of a run, notify the observer, and return the summary."""
    omissions = Omissions()
    scenario, rows = plan.scenario, read_metrics(folder)
    counted = counted_clients(scenario)
    outcome = read_stream_outcome(plan, folder, rows)
    if outcome is not None:
        with omissions.without("accuracy_matrix.png"):
            write_continual(outcome, folder, tasks)
    if not plan.schedule.in_step:
        with omissions.without("schedule.png"):
            draw_schedule_figure(plan.schedule, folder, tasks, outcome)
    if plan.graph is not None:
        with omissions.without("topology.png"):
            draw_graph_figure(plan.graph, plan.schedule.rounds, folder)
    times, stream = {}, scenario.continual is not None
    if scenario.clock is not None:
        # The accuracy of a stream refers to changing tasks.
        reached = (
            {} if stream or scenario.data.is_regression else times_to_accuracy(rows, scenario.clock.targets)
        )
        times = {"virtual_seconds": totals.virtual_seconds, **reached}
    summary = {
        "name": scenario.name,
        "seed": scenario.seed,
        "status": "done",
        "rounds": scenario.rounds,
        **({} if scenario.data.validation is None else {"tested_on": "validation"}),
        **({"metric": scenario.main_metric} if scenario.data.is_regression else {}),
        "final": {
            **final_accuracies(plan, rows, counted),
            "bytes_up": totals.bytes_up,
            "bytes_down": totals.bytes_down,
            "evaluation_bytes": totals.evaluation_bytes,
            **times,
            "by_architecture": by_architecture(plan, rows, counted),
        },
        **({"lower_is_better": lower} if (lower := _lower_is_better(plan)) else {}),
        "continual": None if outcome is None else _continual(outcome),
        **_transferability(rows, counted),
        "at_chance": clients_at_chance(plan, read_warnings(folder)),
        "seconds": round(totals.seconds, 3),
        "versions": package_versions(),
    }
    write_json_atomically(folder / SUMMARY_FILE, summary)
    observer.run_finished(RunReport(folder, summary))
    if page:
        from fedkd.report.page.write import write_final_report

        with omissions.without(REPORT_FILE):
            write_final_report(folder, observer.message)
    # Cells of a bench have no page, and the bench warns once for all cells.
    omissions.report(log.warning if page else observer.message)
    return summary


def _lower_is_better(plan: Plan) -> list[str]:
    """Return the plug-in metrics of which less is better; tables have no plug-ins to ask."""
    return [name for name, function in plan.metrics.items() if getattr(function, "lower_is_better", False)]


def times_to_accuracy(rows: Iterable[MetricRow], targets: Sequence[int]) -> dict[str, float | None]:
    """Return the simulated seconds to each target in percent, by metric name; None if never reached."""
    ended: dict[int, float] = {}
    means: dict[str, list[tuple[int, float]]] = {split: [] for split in ("local", "global")}
    for row in rows:
        if row["client"] is not None or row["value"] is None:
            continue
        if row["metric"] == "virtual_seconds":
            ended[row["round"]] = row["value"]
        elif row["metric"] == "accuracy" and row["task"] is None and row["split"] in means:
            means[row["split"]].append((row["round"], row["value"]))
    found: dict[str, float | None] = {}
    for split in ("local", "global"):
        for target in targets:
            reached = [round for round, value in means[split] if 100 * value >= target - 1e-9]
            found[f"seconds_to_{target}_{split}"] = ended.get(min(reached)) if reached else None
    return found


def _transferability(rows: Sequence[MetricRow], counted: Set[int]) -> dict[str, Any]:
    """Return the summary's table of the last transferability map; empty without a map."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    last = max((row["round"] for row in rows if row["metric"] == "hit_chance"), default=None)
    for row in rows if last is not None else ():
        client, value = row["client"], row["value"]
        if row["round"] == last and client in counted and client is not None and value is not None:
            found.setdefault(row["split"], {}).setdefault(row["metric"], {})[client] = value
    if not found:
        return {}
    table: dict[str, Any] = {"round": last}
    for split in ("local", "global"):
        of_split = found.get(split, {})
        predictors: dict[str, Any] = {}
        for name in (key.removeprefix("rank_") for key in of_split if key.startswith("rank_")):
            rank = interval(list(of_split[f"rank_{name}"].values()))
            hit = spread(list(of_split[f"hit_{name}"].values()))["mean"]
            predictors[name] = {"rank": rank.mean, "half": rank.half, "receivers": rank.seeds, "hit": hit}
        hit_chance = list(of_split.get("hit_chance", {}).values())
        chance = spread(hit_chance)["mean"] if hit_chance else None
        table[split] = {"chance": chance, "predictors": predictors}
    return {"transferability": table}


def clients_at_chance(plan: Plan, warnings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the clients that ended a task or a run no better than majority-class guessing."""
    names = architecture_names(plan.groups)
    return [
        {"client": row["client"], "model": names[row["client"]]}
        | {key: row[key] for key in ("task", "round", "accuracy", "chance")}
        for row in warnings
        if row["warning"] == "at_chance"
    ]


FINAL_ACCURACIES = tuple(
    (split, metric, f"{metric}_{split}")
    for metric in ("accuracy", "accuracy_before_fusion")
    for split in ("local", "global")
)
"""Split and metric of the last round's accuracies, and their keys in a summary."""


def final_accuracies(
    plan: Plan, rows: Sequence[MetricRow], clients: Set[int]
) -> dict[str, dict[str, float] | None]:
    """Return statistics over clients of the last round's metrics; None without a tested client."""
    last_round = plan.last_round
    told: list[tuple[str, str, str]] = [] if plan.scenario.data.is_regression else [*FINAL_ACCURACIES]
    told += [*separate_model_accuracies(plan.strategy), *listed_metrics(plan.scenario)]
    found: dict[str, list[float]] = {key: [] for _, _, key in told}
    keys = {(split, metric): key for split, metric, key in told}
    for row in rows:
        key = keys.get((row["split"], row["metric"]))
        if key and row["round"] == last_round and row["client"] in clients and row["value"] is not None:
            found[key].append(row["value"])
    lower = {key for _, name, key in told if _is_lower_better(plan, name, key)}
    return {
        key: spread(values) | fairness(values, lower_is_better=key in lower) if values else None
        for key, values in found.items()
    }


def _is_lower_better(plan: Plan, name: str, key: str) -> bool:
    """Return whether less is better of a metric, built in or from a plug-in."""
    return find_metric(key).better == "lower" or name.removesuffix("_before_fusion") in _lower_is_better(plan)


def by_architecture(plan: Plan, rows: Sequence[MetricRow], counted: Set[int]) -> dict[str, dict[str, Any]]:
    """Return the number of counted clients and their final accuracies, by architecture."""
    clients: dict[str, set[int]] = {}
    for client, name in enumerate(architecture_names(plan.groups)):
        if client in counted:
            clients.setdefault(name, set()).add(client)
    return {name: {"clients": len(own), **final_accuracies(plan, rows, own)} for name, own in clients.items()}


def read_stream_outcome(
    plan: Plan, folder: Path, rows: Sequence[MetricRow] | None = None
) -> StreamOutcome | None:
    """Return the outcome of a finished run; `rows` default to those of its folder. None without a stream."""
    if (continual := plan.scenario.continual) is None:
        return None
    rows = read_metrics(folder) if rows is None else rows
    epochs = read_epochs(folder) if continual.evaluate_epochs else ()
    return outcome_of_rows(rows, plan.scenario, plan.schedule, plan.strategy, epochs=epochs)


def _continual(outcome: StreamOutcome) -> dict[str, Any]:
    """Return statistics of each continual metric over the n clients for which it is defined."""
    table: dict[str, Any] = {"tasks": outcome.tasks, "evaluation": outcome.evaluation}
    for name, per_client in outcome.figures().items():
        values = [value for value in per_client.values() if not isnan(value)]
        worst = max if find_metric(name).better == "lower" else min
        table[name] = {**spread(values), "worst": float(worst(values))} if values else None
    return table


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean, population standard deviation, minimum, maximum, and the number of values n."""
    array = np.asarray(values, dtype=np.float64)
    figures = {"mean": array.mean(), "std": array.std(), "min": array.min(), "max": array.max()}
    return {name: float(value) for name, value in figures.items()} | {"n": len(array)}
