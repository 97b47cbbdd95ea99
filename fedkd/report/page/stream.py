"""The figures of a run over a stream of tasks: accuracy, forgetting, and metrics of learners."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isnan

import numpy as np

from fedkd.continual import ProtocolOutcome, StreamOutcome, forgetting_per_task
from fedkd.plan import Schedule
from fedkd.report.chart import looks
from fedkd.report.continual import accuracy_matrix, outcome_of_rows, task_labels
from fedkd.report.metrics import find_metric
from fedkd.report.page import figure as plot
from fedkd.report.page.figure import Figure
from fedkd.report.page.record import RunRecord
from fedkd.report.tables import Cell, Table
from fedkd.tracking import protocol_name

MASKS = {"free_share": "free share", "overlap": "overlap with earlier masks", "density": "density"}
STORED = {"stored_bytes": "stored", "peak_bytes": "peak"}
REGIME, REGIMES = "regime/", {1: "R1, no forgetting", 2: "R2, forward", 3: "R3, backward"}
SHOWN_ELSEWHERE = (
    "loss", "agreement", "guidance_kl", "effective_neighbours", "guided_clients",
    "test_samples", "knowledge_cache_bytes", "bytes_sent", "bytes_received", "bytes_per_link", "links",
)  # fmt: skip
Values = Mapping[tuple[int, int], float]  # round and task to the mean over clients


def outcome_of(record: RunRecord) -> StreamOutcome | None:
    """Return the outcome of a stream so far; None without a stream or a schedule."""
    if record.scenario.continual is None or record.schedule is None:
        return None
    return outcome_of_rows(record.rows, record.scenario, record.schedule, epochs=record.epochs())


def matrix_figures(record: RunRecord, outcome: StreamOutcome) -> Iterator[Figure]:
    """Yield the accuracy matrix under each protocol, on the common test sets."""
    chart = accuracy_matrix(outcome, [task.name for task in record.labels])
    for protocol, figure in zip(outcome.protocols, plot.chart_figures(chart), strict=True):
        own = "" if protocol != outcome.evaluation else " This is the protocol of the scenario."
        yield replace(
            figure,
            name=f"matrix-{protocol}",
            title=f"Accuracy matrix, {protocol_name(protocol)}",
            layout=plot.named_axes(f"accuracy on {_axis(record)}", "after") | {"showlegend": False},
            caption=f"{chart.caption}{own}",
            height=min(246 + 26 * len(outcome.tests[0].b), 640),
        )


def forgetting_figures(record: RunRecord, outcome: StreamOutcome) -> Iterator[Figure]:
    """Yield the forgetting of each task, and the average accuracy over tasks."""
    names = task_labels(outcome, [task.name for task in record.labels])
    tests = [outcome.test(protocol, "global") for protocol in outcome.protocols]
    bars, lines, losses, averages = [], [], [], []
    for test, (colour, dash, _) in zip(tests, looks(len(tests)), strict=True):
        lost, clients = forgotten(outcome, test)
        title, mean = protocol_name(test.protocol), average_so_far(test.R)
        bars.append(plot.bar(title, [*map(plot.plain, names[:-1])], (100 * lost).tolist(), colour))
        found = zip(names[:-1], plot.numbers(lost), clients, strict=True)
        losses += [[test.protocol, *row] for row in found]
        shown = [100 * value for value in mean]
        lines.append(plot.line(title, range(1, len(mean) + 1), shown, colour, dash=dash))
        averages += [[test.protocol, learned, value] for learned, value in enumerate(mean, start=1)]
    if any(value is not None for trace in bars for value in trace["y"]):
        layout = plot.named_axes(_axis(record)) | {"yaxis": {"title": {"text": "points"}}, "barmode": "group"}
        caption = (
            "Best accuracy on a task between its end and the last task, minus the final accuracy. Mean over"
            " the clients that learned the task."
        )
        columns = ["protocol", "task", "forgetting", "clients"]
        yield Figure("forgetting", "Forgetting by task", columns, losses, bars, layout, caption)
    title, columns = "Average accuracy over the tasks so far", ["protocol", "tasks", "accuracy"]
    layout = plot.over_tasks("accuracy (%)", len(names))
    caption = "After each task, over all tasks so far, on the common test sets."
    yield Figure("average-accuracy", title, columns, averages, lines, layout, caption)


def average_so_far(R: np.ndarray) -> list[float]:
    """Return the mean accuracy on the tasks learned so far, after each task."""
    return [float(np.mean(R[at, : at + 1])) for at in range(len(R))]


def forgotten(outcome: StreamOutcome, test: ProtocolOutcome) -> tuple[np.ndarray, list[int]]:
    """Return the mean forgetting of each task except the last, `[T−1]`, and the numbers of clients."""
    lost = np.full((len(test.clients) + 1, len(test.R) - 1), np.nan)
    for row, client in enumerate(sorted(outcome.counted & test.clients.keys())):
        R, _ = test.clients[client]
        if R.shape == test.R.shape:
            lost[row] = forgetting_per_task(R)
            if outcome.learned:
                lost[row, ~outcome.learned[client][:-1]] = np.nan
    return plot.known_mean(lost, axis=0), (~np.isnan(lost)).sum(axis=0).tolist()


def schedule_figure(record: RunRecord, schedule: Schedule) -> Figure:
    """Return the task of each client in each round; absent clients leave gaps."""
    every = max(-(-schedule.clients // 1000), 1)
    across = max(-(-schedule.rounds // 1000), 1)
    clients, rounds = range(0, schedule.clients, every), range(1, schedule.rounds + 1, across)
    spans = [(client, span) for client in clients for span in schedule.course(client)]
    table = np.full((len(clients), len(rounds)), np.nan)
    for client, span in spans:
        inside = [at for at, round in enumerate(rounds) if span.first <= round <= span.last]
        table[client // every, inside] = (span.task or 0) + 1
    tasks = sorted({span.task for course in schedule.courses for span in course if span.task is not None})
    names: dict[int | None, str] = dict(enumerate(task.name for task in record.labels))
    rows = [[client, span.task, names.get(span.task, ""), span.first, span.last] for client, span in spans]
    scale = {"title": {"text": "task"}, "thickness": 12, "outlinewidth": 0, "tickformat": "d"}
    if len(tasks) <= 12:
        scale |= {"tickvals": [task + 1 for task in tasks]}
    trace = plot.heat_map(table, rounds, clients, xgap=0, ygap=0, showscale=len(tasks) > 1, text=None)
    trace |= {"x": list(rounds), "y": list(clients), "colorbar": scale,
              "hovertemplate": "round %{x}, client %{y}: task %{z}<extra></extra>"}  # fmt: skip
    layout = plot.axes("round", "client", showlegend=False)
    step = max(-(-schedule.clients // 20), 1)
    layout["yaxis"] |= {"autorange": "reversed", "tick0": 0, "dtick": step, "showgrid": False}
    layout["xaxis"] |= {"tickformat": "d", "showgrid": False}
    columns = ["client", "task", "name", "first round", "last round"]
    caption = (
        "Task of each client in each round, counted from 1. Absent clients leave gaps. Sampling and dropout"
        " are left out."
    )
    height = min(220 + 14 * len(clients), 520)
    return Figure("schedule", "Schedule", columns, rows, [trace], layout, caption, height)


def learner_figures(record: RunRecord) -> Iterator[Figure | Table]:
    """Yield masks, stored bytes, regimes, and a table of all other metrics of learners."""
    said = {
        name: values
        for (split, name), values in record.task_means.items()
        if split == "train" and name not in SHOWN_ELSEWHERE
    }
    for names, title, unit, scale, key in (
        (MASKS, "Masks", "share of weights (%)", 100.0, "masks"),
        (STORED, "Stored bytes", "kB", 1e-3, "stored"),
    ):
        own = {name: said[name] for name in names if name in said}
        if own:
            yield _by_task(own, names, key, title, unit, scale)
    regimes = {name.removeprefix(REGIME): values for name, values in said.items() if name.startswith(REGIME)}
    if regimes:
        yield _regimes(regimes)
    rest = [
        [name, round, task, Cell(f"{value:.4g}", value)]
        for name, values in said.items()
        if name not in MASKS | STORED and not name.startswith("regime")
        for (round, task), value in sorted(values.items())
    ]
    if rest:
        title = "Metrics of learners at the end of each task"
        columns = ["metric", "round", "task", "mean over clients"]
        yield Table("learner", title, columns, rest, open=False)


def _rows(of: Mapping[str, Values]) -> list[list[object]]:
    return [[name, r, task, v] for name, values in of.items() for (r, task), v in sorted(values.items())]


def _by_task(
    own: Mapping[str, Values], titles: Mapping[str, str], key: str, title: str, unit: str, scale: float
) -> Figure:
    data = []
    for (name, values), (colour, dash, _) in zip(own.items(), looks(len(own)), strict=True):
        ordered = [scale * value for _, value in sorted(values.items())]
        data.append(plot.line(titles[name], range(1, len(ordered) + 1), ordered, colour, dash=dash))
    layout = plot.over_tasks(unit, max(map(len, own.values())))
    if unit == "kB":
        layout["yaxis"] |= plot.log_axis(scale * max(values.values()) for values in own.values())
    columns, caption = ["metric", "round", "task", "mean"], "Mean over clients at the end of each task."
    return Figure(key, title, columns, _rows(own), data, layout, caption)


def _regimes(regimes: Mapping[str, Values]) -> Figure:
    ends = sorted({at for values in regimes.values() for at in values})
    table = np.array([[values.get(at, np.nan) for at in ends] for values in regimes.values()])
    names = [f"{layer}, task {old}" for layer, _, old in (name.rpartition("/") for name in regimes)]
    when = [f"task {task} (round {round})" for round, task in ends]
    trace = plot.heat_map(table, when, names, unit="regime", zmin=1, zmax=3)
    ticks = {"tickvals": list(REGIMES), "ticktext": list(REGIMES.values()), "title": {"text": ""}}
    trace["colorbar"] |= ticks
    layout = plot.named_axes("task just learned") | {"showlegend": False}
    columns, height = ["layer/old task", "round", "task", "regime"], min(200 + 22 * len(names), 640)
    caption = "Regime of each old task in each layer, at the end of a new task. Mean of 1, 2, 3 over clients."
    return Figure("regimes", "Regimes", columns, _rows(regimes), [trace], layout, caption, height)


def continual_table(outcome: StreamOutcome) -> Table:
    """Return the continual metrics under the scenario's protocol, mean and worst over clients."""
    rows = []
    for name, per_client in outcome.figures().items():
        values = [value for value in per_client.values() if not isnan(value)]
        if values:
            shown = find_metric(name)
            worst = max(values) if shown.better == "lower" else min(values)
            ends = [Cell(f"{v * shown.scale:.{shown.decimals}f}", v) for v in (float(np.mean(values)), worst)]
            rows.append([shown.label, *ends, len(values)])
    columns = ["metric", "mean", "worst client", "clients"]
    return Table("continual", "Continual metrics", columns, rows, open=False)


def _axis(record: RunRecord) -> str:
    """Return the title of an axis of tasks; split tasks are named by their classes."""
    split = all(task.name.split() == " ".join(task.classes).split() for task in record.labels)
    return "task (its classes)" if record.labels and split else "task"
