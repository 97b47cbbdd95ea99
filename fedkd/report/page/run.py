"""The page of one run."""

from collections.abc import Iterator

from fedkd.continual import StreamOutcome
from fedkd.plan import poisoned_clients
from fedkd.report.metrics import Metric, find_metric
from fedkd.report.page.cost import cost_figures, failure_figures, link_figures
from fedkd.report.page.federation import accuracy_figures, effect_figures, time_figures
from fedkd.report.page.labels import label_figures
from fedkd.report.page.neighbours import neighbour_view
from fedkd.report.page.page import Item, Page, Section
from fedkd.report.page.record import SPLITS, RunRecord, Series
from fedkd.report.page.run_findings import run_findings
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
from fedkd.tracking import SCENARIO_FILE, format_before_after, format_bytes, format_percent

WARNINGS = {"at_chance": "no better than the majority class"}  # names of warnings, for people
MOST_LISTED = 1000  # clients in a table
OF_VALUES = ("mean", "worst_10", "min", "max", "std")  # statistics in the unit of the metric
ERROR_FILE = "error.txt"


def run_page(record: RunRecord) -> Page:
    """Return the page of a run, finished or not."""
    schedule, view, outcome = record.schedule, neighbour_view(record), outcome_of(record)
    whom: list[Item] = [view] if view is not None else []
    varies = schedule is not None and (record.scenario.continual is not None or not schedule.in_step)
    sections = [
        Section(
            record.main.title[:1].upper() + record.main.title[1:],
            [*accuracy_figures(record), *time_figures(record)],
        ),
        Section("Stream of tasks", list(_stream(record, outcome))),
        Section(
            "Fusion" if record.fused else "Local training",
            [*effect_figures(record), *whom, *link_figures(record)],
        ),
        Section("Transferability", list(transfer_figures(record))),
        Section("Clients", [*label_figures(record.labels), *_fairness(record), _clients(record)]),
        Section("Schedule", [schedule_figure(record, schedule)] if schedule is not None and varies else []),
        Section("Cost", list(cost_figures(record))),
        Section("Failures and warnings", [*failure_figures(record), *_warnings(record)]),
    ]
    notes, sources = list(_notes(record)), [(SCENARIO_FILE, record.scenario_text)]
    findings = run_findings(record, outcome)
    return Page(record.title, "fedkd · report of a run", sections, findings, facts(record), notes, sources)


def _stream(record: RunRecord, outcome: StreamOutcome | None) -> Iterator[Item]:
    if outcome is None:
        return
    yield from matrix_figures(record, outcome)
    yield from forgetting_figures(record, outcome)
    yield from learner_figures(record)
    if record.done:
        yield continual_table(outcome)


def _notes(record: RunRecord) -> Iterator[str]:
    if record.scenario.data.validation is not None:
        yield "All accuracies are on validation samples that clients held out (data.validation)."
    if record.done:
        return
    rounds = f"{record.last_round} of {record.scenario.rounds} rounds are recorded"
    failed = (record.folder / ERROR_FILE).exists()
    why = f" It failed: {ERROR_FILE} in its folder has the traceback." if failed else ""
    yield f"This run is unfinished: {rounds}.{why} To resume it: fedkd resume {record.folder}"


def facts(record: RunRecord) -> list[tuple[str, str]]:
    """Return the labels and values of the tiles of a run."""
    scenario = record.scenario
    kinds, scheme = len(set(record.models)), scenario.data.partition.scheme
    alpha = getattr(scenario.data.partition, "alpha", None)
    skew = f" (α = {alpha:g})" if isinstance(alpha, int | float) and "dirichlet" in scheme else ""
    told = [
        ("rounds", str(scenario.rounds) if record.done else f"{record.last_round} of {scenario.rounds}"),
        ("clients", f"{scenario.data.clients}, {kinds} architecture{'s' * (kinds > 1)}"),
        ("data", f"{scenario.data.dataset}, {scheme}{skew}"),
        ("strategy", scenario.fusion.strategy),
    ]
    if record.topology:
        told.append(("topology (no server)", record.topology))
    if scenario.continual is not None:
        told.append(("learner", scenario.continual.learner))
    for split, name in SPLITS.items():
        models = {f"_{model}": f"{name}, {model} model" for model in record.models_told_apart}
        for ending, title in {"": name, **models}.items():
            before, after = (
                final_mean(record, split, f"accuracy{at}{ending}") for at in ("_before_fusion", "")
            )
            if ending or after is not None:
                told.append((title, format_before_after(before, after)))
    for shown, split, name in _listed(record):
        if (value := final_mean(record, split, name)) is not None:
            told.append((shown.label, f"{value * shown.scale:.{shown.decimals}f}"))
    if record.summary is not None:
        final = record.summary["final"]
        up, down = format_bytes(final["bytes_up"]), format_bytes(final.get("bytes_down", 0))
        # Between clients, every byte sent is a byte received.
        told.append(("sent", f"{up} between clients" if record.topology else f"{up} up, {down} down"))
    return told


def _listed(record: RunRecord) -> list[tuple[Metric, str, str]]:
    """Return the listed metrics besides accuracy on each split, with their split and name."""
    return [
        (find_metric(f"{name}_{split}"), split, name)
        for name in record.scenario.metric_names
        for split in ("global", "local")
    ]


def final_mean(record: RunRecord, split: str, name: str) -> float | None:
    """Return the federation's mean of the last round that has one."""
    series = record.series(split, name)
    return series.means[series.rounds[-1]] if series.means else None


def _fairness(record: RunRecord) -> Iterator[Table]:
    """Yield the table of statistics over clients of a finished run with several clients."""
    final = {} if record.summary is None else record.summary["final"]
    names = [*record.moments.values()][not record.fused :] if record.main.name == "accuracy" else []
    keys = [f"{name}_{split}" for split in SPLITS for name in names]
    keys += [f"{name}_{split}" for _, split, name in _listed(record)]
    rows = []
    for key in keys:
        of, shown = final.get(key), find_metric(key)
        if of is None or of.get("worst_10") is None or of["n"] < 2:
            continue
        own = [Cell(f"{of[name] * shown.scale:.{shown.decimals}f}", of[name]) for name in OF_VALUES]
        even = [Cell(f"{of[name]:.3f}", of[name]) if name in of else Cell("–") for name in ("jain", "gini")]
        label = shown.label if record.fused else shown.label.replace(" after fusion", "")
        rows.append([label, *own, *even, of["n"]])
    if rows:
        columns = ["after the last round", "mean", "worst 10 %", "lowest", "highest", "sd", "Jain", "Gini"]
        caption = (
            "Worst 10 %: mean over the worst tenth of clients. Jain index: 1 if all clients have the same,"
            " 1/N if one has all. Gini coefficient: 0 if all have the same."
        )
        yield Table("fairness", "Fairness over clients", [*columns, "clients"], rows, caption)


def _clients(record: RunRecord) -> Table:
    splits, rows = ("local", "global"), []
    measured = [
        (f"{split}, {moment} fusion (%)" if record.fused else f"{split} accuracy (%)", split, name)
        for split in splits
        for moment, name in [*record.moments.items()][not record.fused :]
        if record.main.name == "accuracy"
    ]
    measured += [
        (f"{split}, {model} model (%)", split, f"accuracy_{model}")
        for split in splits
        for model in record.models_told_apart
    ]
    known = [(record.series(split, name), heading, 100.0, 1) for heading, split, name in measured]
    known += [
        (record.series(split, name), shown.label, shown.scale, shown.decimals)
        for shown, split, name in _listed(record)
    ]
    known.append((record.series("train", "effective_neighbours"), "effective neighbours", 1.0, 1))
    known = [found for found in known if found[0].means]
    poisoned = poisoned_clients(record.scenario)
    samples = sum(task.train.sum(axis=1) for task in record.labels) if record.labels else None
    columns = ["client", *["owner"] * bool(record.owners), "model"]
    columns += ["training samples"] * (samples is not None) + [heading for _, heading, *_ in known]
    for client, model in enumerate(record.models[:MOST_LISTED]):
        row: list[object] = [client, *record.owners[client : client + 1]]
        row.append(model + " (poisoned)" * (client in poisoned))
        row += [int(samples[client])] if samples is not None else []
        rows.append([*row, *(_last(found, client, scale, decimals) for found, _, scale, decimals in known)])
    clients = len(record.models)
    caption = "Last measured values of each client."
    caption += (
        f" The table has the first {MOST_LISTED} of {clients} clients." if clients > MOST_LISTED else ""
    )
    return Table("clients", "All clients", columns, rows, caption, open=len(rows) <= 12)


def _last(series: Series, client: int, scale: float, decimals: int) -> Cell:
    """Return the last measured value of a client."""
    for round in sorted(series.clients, reverse=True):
        if client in series.clients[round]:
            value = series.clients[round][client] * scale
            return Cell(f"{value:.{decimals}f}", value)
    return Cell("–")


def _warnings(record: RunRecord) -> Iterator[Table]:
    if not record.warnings:
        return
    rows = []
    for row in record.warnings:
        name = WARNINGS.get(row.get("warning", ""), row.get("warning"))
        shares = [format_percent(row.get(key)) for key in ("accuracy", "chance")]
        rows.append([name, *(row.get(key) for key in ("round", "client", "task")), *shares])
    columns = ["warning", "round", "client", "task", "training accuracy", "majority class"]
    caption = (
        "These clients ended the run or a task with a training accuracy no better than majority-class"
        " guessing."
    )
    yield Table("warnings", "Warnings", columns, rows, caption)
