"""The page of one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedkd.plan.poisoned import poisoned_clients
from fedkd.report.page.cost import cost_figures, failure_figures
from fedkd.report.page.federation import accuracy_figures, effect_figures, time_figures
from fedkd.report.page.labels import label_figures
from fedkd.report.page.links import link_figures
from fedkd.report.page.neighbours import neighbour_view
from fedkd.report.page.page import Item, Page, Section
from fedkd.report.page.record import RunRecord
from fedkd.report.page.stream import (
    continual_table,
    forgetting_figures,
    learner_figures,
    matrix_figures,
    outcome_of,
    schedule_figure,
)
from fedkd.report.page.transferability import transfer_figures
from fedkd.report.tables import Cell, Table
from fedkd.scenario.schema import Scenario
from fedkd.tracking.folder import SCENARIO
from fedkd.tracking.wording import duration, moments, percent, size

WARNINGS = {"at_chance": "no better than the majority class"}
"""Names of warnings in words."""
MOST_LISTED = 1000
"""Clients that a table lists."""
ERROR_FILE = "error.txt"


def run_page(record: RunRecord) -> Page:
    """Return the page of a run, of what there is of it."""
    schedule, fates = record.schedule, list(failure_figures(record))
    view = neighbour_view(record)
    whom: list[Item] = [view] if view is not None else []
    effects = [*effect_figures(record), *whom, *link_figures(record)]
    sections = [
        Section("Accuracy", [*accuracy_figures(record), *time_figures(record)]),
        Section("Stream of tasks", list(_stream(record))),
        Section("Fusion" if record.fused else "Local training", effects),
        Section("Transferability", list(transfer_figures(record))),
        Section("Clients", [*label_figures(record.labels), *_clients(record)]),
        Section(
            "Schedule",
            [schedule_figure(record, schedule)] if schedule is not None and _varies(record) else [],
        ),
        Section("Cost", list(cost_figures(record))),
        Section("What went wrong", [*fates, *_warnings(record)]),
    ]
    return Page(
        title=record.title,
        subtitle="fedkd · report of a run",
        sections=sections,
        facts=facts(record),
        notes=list(_notes(record)),
        sources=[(SCENARIO, record.scenario_text)],
    )


def _varies(record: RunRecord) -> bool:
    return record.schedule is not None and (
        record.scenario.continual is not None or not record.schedule.in_step
    )


def _stream(record: RunRecord) -> Iterator[Item]:
    outcome = outcome_of(record)
    if outcome is None:
        return
    yield from matrix_figures(record, outcome)
    yield from forgetting_figures(record, outcome)
    yield from learner_figures(record)
    if record.done:
        yield continual_table(outcome)


def _notes(record: RunRecord) -> Iterator[str]:
    if record.scenario.data.validation is not None:
        yield "All accuracies are on training samples that clients held out (data.validation), not on tests."
    if record.done:
        return
    rounds = f"{record.last_round} of {record.scenario.rounds} rounds are recorded"
    failed = (record.folder / ERROR_FILE).exists()
    why = f" It failed: {ERROR_FILE} in its folder has the traceback." if failed else ""
    yield f"This run is not done: {rounds}.{why} Go on with it: fedkd resume {record.folder}"


def facts(record: RunRecord) -> list[tuple[str, str]]:
    """Return what to know of a run at first sight."""
    scenario = record.scenario
    kinds = len(set(record.models))
    told = [
        ("rounds", str(scenario.rounds) if record.done else f"{record.last_round} of {scenario.rounds}"),
        ("clients", f"{scenario.data.clients}, {kinds} architecture{'s' * (kinds > 1)}"),
        ("data", describe_data(scenario)),
        ("strategy", scenario.fusion.strategy),
    ]
    if record.topology:
        told.append(("topology, no server", record.topology))
    if scenario.continual is not None:
        told.append(("learner", scenario.continual.learner))
    for split, name in (("global", "global accuracy"), ("local", "local accuracy")):
        trained, guided = final_mean(record, split, "accuracy_trained"), final_mean(record, split, "accuracy")
        if guided is not None:
            told.append((name, moments(trained, guided)))
        for model in record.models_told_apart:
            pair = (
                final_mean(record, split, f"{moment}_{model}") for moment in ("accuracy_trained", "accuracy")
            )
            told.append((f"{name}, {model} model", moments(*pair)))
    if record.summary is not None:
        told.append(("sent", _sent(record)))
        if "virtual_seconds" in record.summary["final"]:
            told.append(("simulated time", duration(record.summary["final"]["virtual_seconds"])))
        told.append(("time", duration(record.summary["seconds"])))
    return told


def _sent(record: RunRecord) -> str:
    """Word what a finished run has sent; what clients send each other is received as often as it is sent."""
    assert record.summary is not None
    final = record.summary["final"]
    if record.scenario.topology.graph != "star":
        return f"{size(final['bytes_up'])} between clients"
    return f"{size(final['bytes_up'])} up, {size(final['bytes_down'])} down"


def describe_data(scenario: Scenario) -> str:
    """Word the data of a scenario: `digits, dirichlet (α = 1)`."""
    alpha = getattr(scenario.data.partition, "alpha", None)
    scheme = scenario.data.partition.scheme
    skew = f" (α = {alpha:g})" if isinstance(alpha, int | float) and "dirichlet" in scheme else ""
    return f"{scenario.data.dataset}, {scheme}{skew}"


def final_mean(record: RunRecord, split: str, name: str) -> float | None:
    """Return the federation's mean of the last round that has one."""
    series = record.series(split, name)
    return series.means[series.rounds[-1]] if series.means else None


def _clients(record: RunRecord) -> Iterator[Table]:
    measured = (("before", "accuracy_trained"), ("after", "accuracy"))
    series = [
        (record.series(split, name), heading)
        for heading, split, name in (
            *(
                (f"{split}, {moment} fusion (%)" if record.fused else f"{split} accuracy (%)", split, name)
                for split in ("local", "global")
                for moment, name in measured[not record.fused :]
            ),
            *(
                (f"{split}, {model} model (%)", split, f"accuracy_{model}")
                for split in ("local", "global")
                for model in record.models_told_apart
            ),
        )
    ]
    known = [(found, heading) for found, heading in series if found.means]
    neighbours = record.series("train", "effective_neighbours")
    poisoned = poisoned_clients(record.scenario)
    samples = sum(task.train.sum(axis=1) for task in record.labels) if record.labels else None
    columns = ["client", *["owner"] * bool(record.owners), "model"]
    columns += ["training samples"] if samples is not None else []
    columns += [heading for _, heading in known] + ["effective neighbours"] * bool(neighbours.means)
    rows = []
    for client, model in enumerate(record.models[:MOST_LISTED]):
        row: list[object] = [client, *record.owners[client : client + 1]]
        row.append(model + " (poisoned)" * (client in poisoned))
        row += [int(samples[client])] if samples is not None else []
        row += [_last(found.clients, client, 100) for found, _ in known]
        row += [_last(neighbours.clients, client, 1)] if neighbours.means else []
        rows.append(row)
    clients = len(record.models)
    caption = "What was measured of each client last."
    caption += f" The first {MOST_LISTED} of {clients}." if clients > MOST_LISTED else ""
    yield Table("clients", "All clients", columns, rows, caption, open=len(rows) <= 12)


def _last(clients, client: int, scale: float) -> Cell:
    """Return what was measured of a client last."""
    for round in sorted(clients, reverse=True):
        if client in clients[round]:
            value = clients[round][client] * scale
            return Cell(f"{value:.1f}", value)
    return Cell("–")


def _warnings(record: RunRecord) -> Iterator[Table]:
    if record.warnings:
        rows: Sequence[Sequence[object]] = [
            [
                WARNINGS.get(row.get("warning", ""), row.get("warning")),
                row.get("round"),
                row.get("client"),
                row.get("task"),
                percent(row.get("accuracy")),
                percent(row.get("chance")),
            ]
            for row in record.warnings
        ]
        yield Table(
            "warnings",
            "Warnings",
            ["warning", "round", "client", "task", "training accuracy", "majority class"],
            rows,
            "Clients that their last training, of the run or of a task, left no better on their training"
            " samples than always guessing the majority class; its share stands beside their accuracy.",
        )


def folder_name(folder: Path) -> str:
    """Return what to call a run by its folder."""
    return folder.resolve().name
