"""The page of several runs side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from fedkd.report.chart import looks
from fedkd.report.metrics import Metric
from fedkd.report.page import figure as plot
from fedkd.report.page.cost import known
from fedkd.report.page.figure import Figure, Trace, line
from fedkd.report.page.page import Page, Section
from fedkd.report.page.record import SPLITS, RunRecord, main_metric, split_titles, test_data
from fedkd.report.page.run import final_mean
from fedkd.report.page.stream import average_so_far, outcome_of
from fedkd.report.tables import Cell, Table
from fedkd.scenario import changed_keys, result_relevant_keys
from fedkd.tracking import protocol_name

HIDDEN_FROM = 8  # from this number of runs on, each has one line: its mean after fusion
CURVES = (
    ("fusion-gain", "Fusion gain in global test accuracy", "global", "fusion_gain", 100.0, "points"),
    ("effective-neighbours", "Effective neighbours", "train", "effective_neighbours", 1.0, "clients"),
    ("fidelity", "Fidelity", "train", "agreement", 100.0, "agreement (%)"),
    ("loss", "Training loss", "train", "loss", 1.0, "loss"),
)

Found = tuple[str, Sequence[float], Sequence[float], Sequence[Sequence[object]]]
"""One run's line: the text after the run's name, x, y, and the rows of the CSV file."""


def comparison_page(records: Sequence[RunRecord]) -> Page:
    """Return the page of several runs, named by their folders."""
    names = run_names(records)
    runs = dict(zip(names, records, strict=True))
    unfinished = [name for name, record in runs.items() if not record.done]
    facts = [("runs", str(len(runs))), ("finished", str(len(runs) - len(unfinished)))]
    sections = [
        Section("Results", [_results(runs)]),
        Section("Differences between scenarios", [*_differences(runs)]),
        Section(_capital(_main(runs).title), [*_accuracy(runs)]),
        Section("Streams of tasks", [*_streams(runs)]),
        Section(
            "Fusion",
            [figure for curve in CURVES[_main(runs).name != "accuracy" :] for figure in _curve(runs, *curve)],
        ),
        Section("Cost", [*_traffic(runs)]),
    ]
    title = " · ".join(names) if len(names) <= 3 else f"{len(names)} runs"
    notes = [f"Unfinished: {', '.join(unfinished)}."] if unfinished else []
    sources = [(f"{name}.toml", record.scenario_text) for name, record in runs.items()]
    return Page(title, "fedkd · report of several runs side by side", sections, (), facts, notes, sources)


def run_names(records: Sequence[RunRecord]) -> list[str]:
    """Return a name for each run: its folder, with the parent folder if two are alike."""
    paths = [record.folder.resolve() for record in records]
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    if len(set(paths)) == len(paths):
        return [f"{path.parent.name}/{path.name}" for path in paths]
    return [f"{place}: {name}" for place, name in enumerate(names, start=1)]


def _main(runs: Mapping[str, RunRecord]) -> Metric:
    """Return the main metric of all runs; accuracy if they differ."""
    names = {record.main.name for record in runs.values()}
    return main_metric(names.pop() if len(names) == 1 else "accuracy")


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]


def _moments(main: Metric) -> dict[str, str]:
    return {"before": f"{main.name}_before_fusion", "after": main.name}


def _results(runs: Mapping[str, RunRecord]) -> Table:
    main = _main(runs)
    moments = _moments(main)
    measured = [(split, moment) for split in SPLITS for moment in moments]
    columns, unit = ["run", "strategy", "seed", "rounds"], "%" if main.unit == "%" else main.title
    columns += [f"{split}, {moment} fusion ({unit})" for split, moment in measured]
    columns += ["sent (MB)", "time (s)"]
    rows = []
    for name, record in runs.items():
        row: list[object] = [name, record.scenario.fusion.strategy, record.scenario.seed, record.last_round]
        for split, moment in measured:
            value = final_mean(record, split, moments[moment])
            scaled = 0.0 if value is None else main.scale * value
            row.append(Cell("–") if value is None else Cell(f"{scaled:.{main.decimals}f}", scaled))
        sent = sum(_sent(record).values()) / 1e6
        seconds = sum(known(row.get("seconds")) for row in record.timings)
        rows.append([*row, Cell(f"{sent:.2f}", sent), Cell(f"{seconds:.1f}", seconds)])
    caption = (
        "Means over clients after the last evaluated round. Single runs have no intervals; a bench repeats"
        " settings over seeds."
    )
    return Table("results", "Results", columns, rows, caption)


def _differences(runs: Mapping[str, RunRecord]) -> Iterator[Table]:
    """Yield the table of keys that differ between scenarios, if any."""
    tables = [
        result_relevant_keys(record.scenario) | {"name": record.scenario.name, "seed": record.scenario.seed}
        for record in runs.values()
    ]
    keys = dict.fromkeys(key for table in tables[1:] for key in changed_keys(tables[0], table))
    if not keys:
        return
    values = [dict(changed_keys({}, table)) for table in tables]
    ends = [[of_run.get(key, (None, None))[1] for of_run in values] for key in keys]
    rows = [
        [key, *("–" if end is None else str(end) for end in row)] for key, row in zip(keys, ends, strict=True)
    ]
    yield Table("differences", "Keys that differ", ["key", *runs], rows)


def _accuracy(runs: Mapping[str, RunRecord]) -> Iterator[Figure]:
    few, main = len(runs) < HIDDEN_FROM, _main(runs)
    for split, where in split_titles(main).items():
        data, rows = [], []
        for (name, record), (colour, dash, symbol) in zip(runs.items(), looks(len(runs)), strict=True):
            for moment, metric in reversed(_moments(main).items()):
                series = record.series(split, metric)
                rows += [[name, round, f"{moment} fusion", series.means[round]] for round in series.rounds]
                if series.means and (metric == main.name or (few and record.fused)):
                    own = {"dash": dash} if metric == main.name else {"dash": "dot", "width": 1.2}
                    y = [main.scale * series.means[round] for round in series.rounds]
                    label = f"{name}, {moment} fusion" if few and record.fused else name
                    data.append(line(label, series.rounds, y, colour, symbol=symbol, **own))
        if data:
            more = "" if few else " After fusion; the CSV also has the values before fusion."
            columns, layout = ["run", "round", "moment", main.name], plot.over_rounds(main.label)
            tested = test_data(split, [record.scenario for record in runs.values()])
            caption = f"Means over clients, {tested}.{more}"
            yield Figure(f"{main.name}-{split}", _capital(where), columns, rows, data, layout, caption, 420)


def _lines(
    runs: Mapping[str, RunRecord], find: Callable[[RunRecord], Found | None]
) -> tuple[list[Trace], list[list[object]]]:
    """Return a line for each run that has one, and the rows of all, each with its run."""
    data: list[Trace] = []
    rows: list[list[object]] = []
    for (run, record), (colour, dash, symbol) in zip(runs.items(), looks(len(runs)), strict=True):
        if (found := find(record)) is not None:
            words, x, y, numbers = found
            data.append(line(run + words, x, y, colour, dash=dash, symbol=symbol))
            rows += [[run, *row] for row in numbers]
    return data, rows


def _curve(
    runs: Mapping[str, RunRecord], name: str, title: str, split: str, metric: str, scale: float, unit: str
) -> Iterator[Figure]:
    def find(record: RunRecord) -> Found | None:
        means = sorted(record.series(split, metric).means.items())
        rounds = [round for round, _ in means]
        return ("", rounds, [scale * mean for _, mean in means], means) if means else None

    data, rows = _lines(runs, find)
    if data:
        columns = ["run", "round", metric]
        yield Figure(name, title, columns, rows, data, plot.over_rounds(unit), "Means over clients.")


def _streams(runs: Mapping[str, RunRecord]) -> Iterator[Figure]:
    def find(record: RunRecord) -> Found | None:
        outcome = outcome_of(record)
        if outcome is None:
            return None
        averages = average_so_far(outcome.test(outcome.evaluation, "global").R)
        learned, protocol = range(1, len(averages) + 1), protocol_name(outcome.evaluation)
        rows = [(protocol, task, value) for task, value in zip(learned, averages, strict=True)]
        return f", {protocol}", learned, [100 * value for value in averages], rows

    data, rows = _lines(runs, find)
    if data:
        title, columns = "Average accuracy over the tasks so far", ["run", "protocol", "tasks", "accuracy"]
        layout = plot.over_tasks("accuracy (%)", max(len(trace["x"]) for trace in data))
        caption = "After each task, over all tasks so far, on the common test sets, under each scenario's"
        caption += " own protocol."
        yield Figure("average-accuracy", title, columns, rows, data, layout, caption)


def _traffic(runs: Mapping[str, RunRecord]) -> Iterator[Figure]:
    """Yield the global main metric against bytes, for runs that send something."""
    main = _main(runs)

    def find(record: RunRecord) -> Found | None:
        series, sent = record.series("global", main.name), _sent(record)
        so_far = [sum(b for at, b in sent.items() if at <= round) for round in series.rounds]
        if not series.means or not so_far[-1]:
            return None
        rows = [(r, b, series.means[r]) for r, b in zip(series.rounds, so_far, strict=True)]
        return "", [b / 1e6 for b in so_far], [main.scale * mean for _, _, mean in rows], rows

    data, rows = _lines(runs, find)
    if data:
        title, columns = f"Global test {main.title} against bytes", ["run", "round", "bytes", main.name]
        after = f"{main.title} after fusion" + f" ({main.unit})" * bool(main.unit)
        layout = plot.axes("sent so far, up and down (MB)", after, hovermode="closest")
        layout["xaxis"] |= plot.log_axis(trace["x"][-1] for trace in data)
        caption = "Payload of all clients' messages, without those for evaluation. Runs that send nothing are"
        caption += " left out."
        yield Figure("traffic", title, columns, rows, data, layout, caption)


def _sent(record: RunRecord) -> dict[int, float]:
    """Return the bytes up and down by round, without those for evaluation."""
    sent: dict[int, float] = {}
    for row in record.timings:
        if isinstance(row.get("round"), int):
            own = known(row.get("bytes_up")) + known(row.get("bytes_down"))
            sent[row["round"]] = sent.get(row["round"], 0.0) + own
    return sent
