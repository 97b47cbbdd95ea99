"""The costs of a run: bytes, links, time by phase, failures."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedkd.report.chart import COLOURS, DASHES, looks
from fedkd.report.page import figure as plot
from fedkd.report.page.figure import Figure, bar, line, over_rounds
from fedkd.report.page.record import RunRecord
from fedkd.storage import list_table_rounds
from fedkd.tracking import FUSION_STEM, read_links

MOST_PHASE_BARS = 120
MOST_LINKED = 50  # up to this number of clients, a page shows every pair
COUNTS = ("bytes_up", "bytes_down", "evaluation_bytes")


def cost_figures(record: RunRecord) -> Iterator[Figure]:
    """Yield bytes and time by phase, over rounds."""
    sent: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    seconds: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for row in record.timings:
        if not isinstance(row, Mapping) or not isinstance(row.get("round"), int):
            continue
        for at, key in enumerate(COUNTS):
            sent[row["round"]][at] += known(row.get(key))
        if isinstance(row.get("phase"), str):
            seconds[row["phase"]][row["round"]] += known(row.get("seconds"))
    if any(any(of_round) for of_round in sent.values()):
        yield _bytes(sent, between=record.scenario.topology.graph != "star")
    if seconds:
        yield _phases(seconds)


def known(value: object) -> float:
    """Return a recorded number; 0 where there is none."""
    return float(value) if isinstance(value, int | float) else 0.0


def _bytes(sent: Mapping[int, Sequence[float]], *, between: bool) -> Figure:
    """Return the bytes up, down and for evaluation; `between` clients, each byte up is a byte down."""
    rounds = sorted(sent)
    totals = np.cumsum([sent[round] for round in rounds], axis=0)
    names = ("between clients" if between else "to the server", "to the clients", "for evaluation only")
    data = [
        line(name, rounds, totals[:, at] / 1e6, COLOURS[at], dash=DASHES[at])
        for at, name in enumerate(names)
        if totals[-1, at] and not (between and at == 1)
    ]
    rows = [[round, *map(int, sent[round])] for round in rounds]
    layout = over_rounds("MB")
    layout["yaxis"] |= plot.log_axis(totals[-1])
    title, caption = "Cumulative bytes", "Payload of all clients' messages."
    return Figure("bytes", title, ["round", *COUNTS], rows, data, layout, caption)


def _phases(seconds: Mapping[str, Mapping[int, float]]) -> Figure:
    rounds = sorted({round for of_phase in seconds.values() for round in of_phase})
    width = -(-len(rounds) // MOST_PHASE_BARS)
    starts = rounds[::width]
    data = []
    for (phase, of_round), (colour, _, _) in zip(seconds.items(), looks(len(seconds)), strict=True):
        spans = (rounds[at : at + width] for at in range(0, len(rounds), width))
        data.append(bar(phase, starts, [sum(of_round.get(r, 0.0) for r in span) for span in spans], colour))
    rows = [[at, phase, value] for phase, of in seconds.items() for at, value in sorted(of.items())]
    caption = "Wall-clock time on the server." + (f" Each bar covers {width} rounds." if width > 1 else "")
    layout = over_rounds("seconds", barmode="stack")
    return Figure("time", "Time by phase", ["round", "phase", "seconds"], rows, data, layout, caption)


def failure_figures(record: RunRecord) -> Iterator[Figure]:
    """Yield the number of failed and late clients by round; nothing without any."""
    found = {
        f"{word} in {phase}": record.series(split, name)
        for name, word in (("failed", "failed"), ("timed_out", "timed out"), ("refused", "refused"))
        for split, phase in (("train", "training"), ("local", "evaluation"))
    }
    found = {name: series for name, series in found.items() if series.means}
    if not found:
        return
    data = [
        bar(name, series.rounds, [series.means[r] for r in series.rounds], colour)
        for (name, series), (colour, _, _) in zip(found.items(), looks(len(found)), strict=True)
    ]
    rows = [
        [round, client, name, value]
        for name, series in found.items()
        for round in series.rounds
        for client, value in series.clients.get(round, {}).items()
    ]
    columns, layout = ["round", "client", "failure", "count"], over_rounds("count", barmode="stack")
    caption = "The round went on without these clients."
    yield Figure("failures", "Failed clients", columns, rows, data, layout, caption)


def link_figures(record: RunRecord) -> Iterator[Figure]:
    """Yield the bytes over each link of a run without a server."""
    clients = len(record.models)
    if record.scenario.topology.graph == "star" or clients > MOST_LINKED:
        return
    rounds, sizes = np.zeros((clients, clients), dtype=np.int64), np.zeros((clients, clients), dtype=np.int64)
    for round in list_table_rounds(record.folder / FUSION_STEM, "links"):
        table = read_links(record.folder, round)
        if table is not None and table.clients and max(table.clients) < clients:
            own = np.ix_(table.clients, table.clients)
            rounds[own] += table.heard
            sizes[own] += table.sizes
    if not rounds.any():
        return
    names = [str(client) for client in range(clients)]
    shown = np.where(rounds > 0, sizes / 1e3, np.nan)
    alike = plot.constant(shown)
    told = "" if alike is None else f" Every link carried {alike:.4g} kB."
    caption = f"Bytes over each link, summed over rounds. Empty cells have no link.{told}"
    rows = [[n, m, int(rounds[n, m]), int(sizes[n, m])] for n, m in np.argwhere(rounds).tolist()]
    columns = ["receiver", "sender", "rounds", "bytes"]
    data = [plot.heat_map(shown, names, names, unit="kB", digits=0)]
    layout = plot.named_axes("sender", "receiver") | {"showlegend": False}
    height = min(240 + 22 * clients, 640)
    yield Figure("links", "Bytes over links", columns, rows, data, layout, caption, height)
