"""The figures of a federation: accuracy before and after fusion, and the effects of fusion."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from fedkd.report.chart import looks
from fedkd.report.page import figure as plot
from fedkd.report.page.figure import MAIN, SECOND, Figure, Trace, line
from fedkd.report.page.record import RunRecord, Series, split_titles, test_data

ALL_IN_BAND = 10  # below this number of clients, a band spans the lowest to the highest
THIN: dict[str, Any] = {"width": 1.2, "mode": "lines", "opacity": 0.8}  # of all lines except the mean


def accuracy_figures(record: RunRecord) -> Iterator[Figure]:
    """Yield global and local accuracy, or the main metric, over rounds."""
    for split, where in split_titles(record.main).items():
        fused, trained = (record.series(split, record.moments[moment]) for moment in ("after", "before"))
        if fused.means:
            yield _accuracy(record, split, where, fused, trained)


def _accuracy(record: RunRecord, split: str, where: str, fused: Series, trained: Series) -> Figure:
    rounds, main = fused.rounds, record.main
    counted, scale = record.counted, main.scale
    low, high, words = spread_of(fused, rounds, counted)
    after = "after fusion, mean" if record.fused else "mean"
    several = any(len(_of(fused, round, counted)) > 1 for round in rounds)
    columns: dict[str, Sequence[float | None]] = {after: _means(fused, rounds)}
    data: list[Trace] = []
    if several:
        data.append(plot.band(words, rounds, scale * low, scale * high, MAIN))
        columns |= {f"{words}, low": low.tolist(), f"{words}, high": high.tolist()}

    def draw(label: str, values: Sequence[float | None], colour: str, **look: Any) -> None:
        columns[label] = values
        data.append(line(label, rounds, _scaled(values, scale), colour, **look))

    groups = _architectures(record, counted)
    for (name, own), (colour, dash, _) in zip(groups.items(), looks(len(groups) + 2)[2:], strict=True):
        of_rounds = [list(_of(fused, round, own).values()) for round in rounds]
        means = [float(np.mean(values)) if values else None for values in of_rounds]
        draw(f"{name} ({len(own)})", means, colour, dash=dash, **THIN)
    for name, dash in zip(record.models_told_apart, cycle(("dot", "dashdot"))):
        for (moment, metric), colour in zip(record.moments.items(), (SECOND, MAIN), strict=True):
            values = _means(record.series(split, f"{metric}_{name}"), rounds)
            draw(f"{name} model, {moment} fusion", values, colour, dash=dash, **THIN)
    if several:
        worst, best = _ends(fused, rounds, counted, lower=main.better == "lower")
        for word, dash, client in (("worst", "dot", worst), ("best", "dashdot", best)):
            values = [fused.clients.get(round, {}).get(client) for round in rounds]
            draw(f"{word}: {record.client_name(client)}", values, plot.MUTED, dash=dash, **THIN)
    if trained.means and record.fused:
        draw("before fusion, mean", _means(trained, rounds), SECOND, dash="dash", legendrank=2)
    data.append(line(after, rounds, _scaled(columns[after], scale), MAIN, width=4, legendrank=1))
    rows = [[round, *(values[at] for values in columns.values())] for at, round in enumerate(rounds)]
    title, heads, layout = where[:1].upper() + where[1:], ["round", *columns], plot.over_rounds(main.label)
    caption = _how_to_read(record, split, words if several else "", bool(groups))
    return Figure(f"{main.name}-{split}", title, heads, rows, data, layout, caption, 400)


def _how_to_read(record: RunRecord, split: str, spread: str, architectures: bool) -> str:
    when = " after fusion" if record.fused else ""
    over = ", over the tasks so far" if record.scenario.continual is not None else ""
    told = [
        f"{_capital(record.main.title)} {test_data(split, [record.scenario])}{over}.",
        "Before fusion: after local training." * record.fused,
        f"The band spans the clients{when} ({spread})." if spread else "",
        f"Each architecture has the mean of its clients{when}." if architectures else "",
        "Worst and best refer to the last round." if spread else "",
        "Dotted lines show each model of a client alone." if record.models_told_apart else "",
    ]
    return " ".join(filter(None, told))


def time_figures(record: RunRecord) -> Iterator[Figure]:
    """Yield the mean accuracies over simulated time of a run with a clock."""
    passed = record.series("train", "virtual_seconds").means
    data: list[Trace] = []
    columns: dict[str, Mapping[int, float]] = {}
    main = record.main
    for (split, where), colour in zip(split_titles(main).items(), (MAIN, SECOND), strict=True):
        for moment, name in [*reversed(record.moments.items())][: 2 if record.fused else 1]:
            means = record.series(split, name).means
            rounds = [round for round in sorted(means) if round in passed]
            if rounds:
                columns[f"{name}_{split}"] = means
                values = _scaled([means[round] for round in rounds], main.scale)
                title = f"{where}, {moment} fusion" if record.fused else where
                dash = "solid" if name == main.name else "dash"
                data.append(line(title, [passed[round] for round in rounds], values, colour, dash=dash))
    rows = [[round, passed[round], *(of.get(round) for of in columns.values())] for round in sorted(passed)]
    if data:
        title, heads = f"{_capital(main.title)} over simulated time", ["round", "virtual_seconds", *columns]
        layout = plot.axes("simulated time (s)", main.label, hovermode="closest")
        caption = "Means over clients. The clock of the scenario gives the simulated time."
        yield Figure(f"{main.name}-time", title, heads, rows, data, layout, caption)


def spread_of(
    series: Series, rounds: Sequence[int], counted: Collection[int]
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the lower and upper end of a band over clients, `[R]`, and its name."""
    values = [list(_of(series, round, counted).values()) or [np.nan] for round in rounds]
    few = max(map(len, values), default=0) < ALL_IN_BAND
    ends = (0, 100) if few else (10, 90)
    low, high = (np.array([np.percentile(of_round, end) for of_round in values]) for end in ends)
    return low, high, "lowest to highest client" if few else "10th to 90th percentile"


def _of(series: Series, round: int, clients: Collection[int]) -> dict[int, float]:
    return {c: value for c, value in series.clients.get(round, {}).items() if c in clients}


def _means(series: Series, rounds: Sequence[int]) -> list[float | None]:
    return [series.means.get(round) for round in rounds]


def _scaled(values: Sequence[float | None], scale: float) -> list[float | None]:
    return [None if value is None else scale * value for value in values]


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]


def _architectures(record: RunRecord, counted: Collection[int]) -> dict[str, list[int]]:
    """Return the counted clients of every architecture; nothing if there is only one."""
    groups: dict[str, list[int]] = defaultdict(list)
    for client, name in enumerate(record.models):
        if client in counted:
            groups[name].append(client)
    return dict(groups) if len(groups) > 1 else {}


def _ends(series: Series, rounds: Sequence[int], counted: Collection[int], *, lower: bool) -> tuple[int, int]:
    """Return the worst and the best client of the last round with several clients."""
    for round in reversed(rounds):
        values = _of(series, round, counted)
        if len(values) > 1:
            sign = -1 if lower else 1
            ranked = sorted(values, key=lambda client: (sign * values[client], client))
            return ranked[0], ranked[-1]
    raise ValueError("no round has several clients")


Line = tuple[str, str, str]  # split, metric and name of a line
EFFECTS: Sequence[tuple[str, str, str, float, Sequence[Line], str]] = (
    (
        "fusion-gain", "Fusion gain", "points", 100,
        [("global", "fusion_gain", "global test accuracy"), ("local", "fusion_gain", "local test accuracy")],
        "Accuracy after fusion minus accuracy before fusion, over clients that received targets or weights."
        " Above zero, fusion helped.",
    ),
    (
        "fidelity", "Fidelity", "agreement (%)", 100,
        [("train", "agreement", "same class as the targets")],
        "Share of transfer samples on which a client predicts the class of its targets after distillation.",
    ),
    (
        "guidance-kl", "KL divergence from the targets", "KL (nats)", 1,
        [("train", "guidance_kl", "from the client's predictions to its targets")],
        "On the transfer set, after distillation. 0 means that predictions and targets are equal.",
    ),
    (
        "flips", "Predictions changed by distillation", "common test samples (%)", 100,
        [("global", "positive_flips", "wrong to right"), ("global", "negative_flips", "right to wrong")],
        "The difference of both lines is the fusion gain. Large flips with a small gain cancel each other.",
    ),
    (
        "effective-neighbours", "Effective neighbours", "clients", 1,
        [("train", "effective_neighbours", "effective number of sources")],
        "1 = one source, N = uniform average.",
    ),
    (
        "loss", "Training loss", "loss", 1,
        [("train", "loss", "local training")],
        "Mean over the steps of a round.",
    ),
)  # fmt: skip
"""Name, title, unit, scale, lines and caption of the figures of means over rounds."""


OF_ERRORS = (
    (
        "fusion-gain", "Fusion gain", "improvement", 1.0,
        [("global", "fusion_gain", "global test data"), ("local", "fusion_gain", "local test data")],
        "Improvement of the main metric by fusion, in its unit, over clients that received targets or"
        " weights. Above zero, fusion helped.",
    ),
    *EFFECTS[-2:],
)  # fmt: skip
"""The same for regression."""


def effect_figures(record: RunRecord) -> Iterator[Figure]:
    """Yield the recorded effects of fusion as means with bands over clients."""
    for name, title, unit, scale, lines, caption in EFFECTS if record.main.name == "accuracy" else OF_ERRORS:
        data: list[Trace] = []
        rows: list[list[object]] = []
        of_what = ""
        for (split, what, label), (colour, dash, _) in zip(lines, looks(len(lines)), strict=True):
            series = record.series(split, what)
            rounds = series.rounds
            if not rounds:
                continue
            low, high, words = spread_of(series, rounds, record.counted)
            means = [series.means[round] for round in rounds]
            if any(len(_of(series, round, record.counted)) > 1 for round in rounds):
                data.append(plot.band(words, rounds, scale * low, scale * high, colour, showlegend=False))
                of_what = f" Bands: {words}."
            data.append(line(label, rounds, [scale * mean for mean in means], colour, dash=dash))
            rows += [[r, split, what, m, a, b] for r, m, a, b in zip(rounds, means, low, high, strict=True)]
        if data:
            columns = ["round", "split", "metric", "mean", "low", "high"]
            layout = plot.over_rounds(unit, showlegend=len(lines) > 1)
            if unit == "loss":
                layout["yaxis"] |= _loss_axis(rows)
            yield Figure(name, title, columns, rows, data, layout, caption + of_what)


def _loss_axis(rows: Sequence[Sequence[Any]]) -> dict[str, str]:
    """Return a logarithmic axis if one mean is far above most, as when training diverges."""
    means, lows = (np.array([row[at] for row in rows], dtype=float) for at in (3, 4))
    positive = lows[np.isfinite(lows)].min(initial=np.inf) > 0
    return plot.log_axis([means.max(), float(np.median(means))]) if positive else {}
