"""The figures of transferability maps: predicted and measured gains between clients."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fedkd.fusion import TRANSFER_PREDICTORS, best_sender_hits, chance_accuracy, rank_correlation
from fedkd.report.page import figure as plot
from fedkd.report.page.figure import Figure, Trace
from fedkd.report.page.record import SPLITS, RunRecord
from fedkd.report.statistics import interval
from fedkd.report.tables import Cell, Table
from fedkd.storage import list_table_rounds
from fedkd.tracking import TRANSFERABILITY_FOLDER, TransferMap, read_transfer_map

MOST_CLIENTS = 50  # up to this number, every pair of clients is shown; above it, only the table
MOST_ROUNDS = 20  # maps of a page, evenly spread over all
WORDS = {
    "distance": "−distance of mean predictions",
    "agreement": "agreement",
    "surer": "disagrees with more confidence",
    "shift": "cosine of shifts",
    "complement": "right where the receiver is wrong",
}
GAP = 0.05
MOST_NUMBERED = 6  # up to this number of clients, cells show their numbers


def transfer_figures(record: RunRecord) -> Iterator[Figure | Table]:
    """Yield the maps and the quality of the predictors; nothing without a map."""
    recorded = list_table_rounds(record.folder / TRANSFERABILITY_FOLDER, "round")
    places = np.linspace(0, len(recorded) - 1, min(len(recorded), MOST_ROUNDS)).round().astype(int)
    known = (read_transfer_map(record.folder, recorded[place]) for place in np.unique(places))
    clients = len(record.models)
    maps = [found for found in known if found and found.clients and max(found.clients) < clients]
    if not maps:
        return
    shown = [(found, name) for found in maps for name in _predictors(found)]
    if shown and clients <= MOST_CLIENTS:
        for split in SPLITS:
            yield _side_by_side(shown, split)
        yield _scatter(record, shown)
    if clients <= MOST_CLIENTS:
        yield from _knowledge(record, [found for found in maps if found.complement_by_class is not None])
    yield _quality(maps, record)


def _predictors(found: TransferMap) -> list[str]:
    return [name for name in TRANSFER_PREDICTORS if name in found.predicted]


def _label(found: TransferMap, name: str) -> str:
    return f"round {found.round}, {WORDS[name]}"


def _side_by_side(shown: Sequence[tuple[TransferMap, str]], split: str) -> Figure:
    """Return predictions beside measured gains, with a slider over rounds and predictors."""
    width = (1.0 - GAP) / 2
    layout: dict[str, Any] = {"margin": {"t": 40}, "annotations": []}
    for place, title in enumerate(("predicted", "measured gain (points)")):
        start, number = place * (width + GAP), "2" if place else ""
        layout["annotations"].append(
            {"text": title, "x": start + width / 2, "y": 1.0, "xref": "paper", "yref": "paper",
             "xanchor": "center", "yanchor": "bottom", "showarrow": False}
        )  # fmt: skip
        layout[f"xaxis{number}"] = {
            "domain": [start, start + width], "type": "category", "title": {"text": "sender"},
            "showgrid": False, "anchor": f"y{number}",
        }  # fmt: skip
        layout[f"yaxis{number}"] = {
            "type": "category", "autorange": "reversed", "showgrid": False, "anchor": f"x{number}",
            "showticklabels": place == 0, "title": {"text": "receiver" if place == 0 else ""},
        }  # fmt: skip
    rows = [
        [found.round, receiver, sender, name, *(float(table[n, m]) for table in _tables(found, name, split))]
        for found, name in shown
        for n, receiver in enumerate(found.clients)
        for m, sender in enumerate(found.clients)
    ]
    frames = plot.in_frames([(_label(found, name), _maps(found, name, split)) for found, name in shown])
    columns = ["round", "receiver", "sender", "predictor", "predicted", "gain"]
    caption = (
        "Left: values of a predictor before any exchange. They have no unit; their order within a row counts."
        " Right: gain of a copy of the receiver that distilled the predictions of this sender alone (red:"
        " gain, blue: loss). On the diagonal, a copy distilled its own predictions."
    )
    name, title = f"transferability-{split}", f"Predicted and measured gain, {SPLITS[split]}"
    return Figure(name, title, columns, rows, layout=layout, caption=caption, height=360, **frames)


def _tables(found: TransferMap, name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    return found.predicted[name], found.gain_local if split == "local" else found.gain_global


def _maps(found: TransferMap, name: str, split: str) -> list[Trace]:
    """Return the heat maps of a round; the predictor's has no diagonal."""
    guess, gain = _tables(found, name, split)
    guess = np.where(np.eye(len(found.clients), dtype=bool), np.nan, guess)
    names = [str(client) for client in found.clients]
    alike = {"type": "heatmap", "x": names, "y": names, "hoverongaps": False, "xgap": 1, "ygap": 1,
             "showscale": False}  # fmt: skip
    most = 100 * max(float(np.abs(gain[np.isfinite(gain)]).max(initial=0.0)), 1e-3)
    predicted: Trace = {**alike, "z": plot.grid(guess, 4), "colorscale": plot.SCALE}
    gained: Trace = {**alike, "z": plot.grid(100 * gain, 4), "colorscale": "RdBu", "zmin": -most,
                     "zmax": most, "xaxis": "x2", "yaxis": "y2"}  # fmt: skip
    if len(names) <= MOST_NUMBERED:
        predicted["texttemplate"], gained["texttemplate"] = "%{z:.2f}", "%{z:.0f}"
    return [predicted, gained]


def _scatter(record: RunRecord, shown: Sequence[tuple[TransferMap, str]]) -> Figure:
    """Return predicted against measured gain, a point per ordered pair of clients."""
    frames, rows = [], []
    for found, name in shown:
        apart = ~np.eye(len(found.clients), dtype=bool)
        pairs = [(found.clients[n], found.clients[m]) for n, m in np.argwhere(apart).tolist()]
        words = np.array([" from ".join(plot.plain(record.client_name(c)) for c in pair) for pair in pairs])
        guess, traces = found.predicted[name][apart], []
        for split, colour, symbol in (("local", plot.SECOND, "diamond"), ("global", plot.MAIN, "circle")):
            gain = _tables(found, name, split)[1][apart]
            finite = np.isfinite(gain) & np.isfinite(guess)
            traces.append(
                {"type": "scatter", "mode": "markers", "name": SPLITS[split], "x": guess[finite].tolist(),
                 "y": (100 * gain[finite]).tolist(), "marker": {"color": colour, "symbol": symbol, "size": 6},
                 "text": words[finite].tolist(),
                 "hovertemplate": "%{text}<br>%{x:.3g}, %{y:.1f} points<extra></extra>"}
            )  # fmt: skip
            told = zip(pairs, guess.tolist(), gain.tolist(), strict=True)
            rows += [[found.round, name, split, *pair, x, y] for pair, x, y in told]
        frames.append((_label(found, name), traces))
    title, layout = "Predicted against measured gain", plot.axes("predicted", "measured gain (points)")
    columns = ["round", "predictor", "split", "receiver", "sender", "predicted", "gain"]
    caption = (
        "One point per ordered pair of clients. A useful predictor makes points rise to the right, also among"
        " the senders of a single receiver. The rank correlations below measure this."
    )
    slider = plot.in_frames(frames)
    return Figure(
        "transferability-scatter", title, columns, rows, layout=layout, caption=caption, height=400, **slider
    )


def _knowledge(record: RunRecord, maps: Sequence[TransferMap]) -> Iterator[Figure]:
    """Yield complementary knowledge by class, and the share of it that receivers learned."""
    rates = [(found, found.transfer_rate) for found in maps if found.transfer_rate is not None]
    if not rates:
        return
    classes = list(record.labels[0].classes) if record.labels else []
    by_class = [(found, _mean_of_others(found)) for found in maps]
    if any(table.shape[1] != len(classes) for _, table in by_class):
        classes = [str(label) for label in range(max(table.shape[1] for _, table in by_class))]
    yield _one_map(
        "complement-by-class",
        "Complementary knowledge",
        [(found, 100 * table, classes[: table.shape[1]]) for found, table in by_class],
        ("class", "client", "transfer samples of the class (%)"),
        "Share of a class's transfer samples that another client classifies correctly and this one does not,"
        " before any exchange. Mean over the other clients.",
    )
    yield _one_map(
        "transfer-rate",
        "Transfer rate",
        [(found, 100 * rate, [str(client) for client in found.clients]) for found, rate in rates],
        ("sender", "receiver", "learned of the complementary samples (%)"),
        "Of the transfer samples that the sender classifies correctly and the receiver does not: the share"
        " that a copy of the receiver classifies correctly after distilling from this sender alone.",
    )


def _mean_of_others(found: TransferMap) -> np.ndarray:
    """Return the complementary share of each client and class, mean over other clients, `[N, C]`."""
    assert found.complement_by_class is not None
    table = found.complement_by_class.copy()
    table[np.arange(len(table)), np.arange(len(table))] = np.nan
    return plot.known_mean(table, axis=1)


def _one_map(
    name: str,
    title: str,
    tables: Sequence[tuple[TransferMap, np.ndarray, Sequence[str]]],
    words: tuple[str, str, str],
    caption: str,
) -> Figure:
    """Return a heat map of each round, with a slider."""
    across, down, unit = words
    frames, rows = [], []
    for found, table, columns in tables:
        drawn = plot.heat_map(table, columns, found.clients, unit="%", digits=0, zmin=0, zmax=100)
        frames.append((f"round {found.round}", [drawn]))
        rows += [
            [found.round, client, column, value]
            for client, values in zip(found.clients, table.tolist(), strict=True)
            for column, value in zip(columns, values, strict=True)
        ]
    heads, layout = ["round", down, across, unit], plot.named_axes(across, down)
    slider = plot.in_frames(frames)
    return Figure(name, title, heads, rows, layout=layout, caption=caption, height=360, **slider)


def _quality(maps: Sequence[TransferMap], record: RunRecord) -> Table:
    """Return each predictor's rank correlation, and how often it found the best sender."""
    counted = record.counted
    rows: list[list[object]] = []
    for found in maps:
        own = np.array([client in counted for client in found.clients])
        for split, where in SPLITS.items():
            for name in _predictors(found):
                guess, gain = _tables(found, name, split)
                ranks = rank_correlation(guess, gain)[own]
                shares = [_share(best_sender_hits(guess, gain)[own]), _share(chance_accuracy(gain)[own])]
                number = int(np.isfinite(ranks).sum())
                rows.append([found.round, WORDS[name], where, _spearman(ranks), number, *shares])
    columns = ["round", "predictor", "gain on", "Spearman", "receivers"]
    columns += ["best sender found (%)", "by chance (%)"]
    caption = (
        "Spearman's correlation of predicted and measured gain over the senders of a receiver. Mean over"
        " receivers, with a 95 % interval from three receivers on. Receivers share senders, so the interval"
        " holds for these clients only."
    )
    return Table("transferability-quality", "Quality of the predictors", columns, rows, caption)


def _spearman(ranks: np.ndarray) -> Cell:
    known = ranks[np.isfinite(ranks)].tolist()
    if not known:
        return Cell("–")
    mean = interval(known)
    half = "" if mean.half is None or len(known) < 3 else f" ± {mean.half:.2f}"
    return Cell(f"{mean.mean:+.2f}{half}", mean.mean)


def _share(values: np.ndarray) -> Cell:
    known = values[np.isfinite(values)]
    share = 100 * float(known.mean()) if known.size else None
    return Cell("–") if share is None else Cell(f"{share:.0f}", share)
