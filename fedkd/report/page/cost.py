"""What a run cost, and who dropped out of it: bytes, time by phase, failures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedkd.report.chart import COLOURS, DASHES, looks
from fedkd.report.page.figure import Figure, bar, line, log_axis, over_rounds
from fedkd.report.page.record import RunRecord

MOST_PHASE_BARS = 120


def cost_figures(record: RunRecord) -> Iterator[Figure]:
    """Yield bytes and time by phase, over rounds."""
    sent: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    seconds: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for row in record.timings:
        if not isinstance(row, Mapping) or not isinstance(row.get("round"), int):
            continue
        for at, key in enumerate(("bytes_up", "bytes_down", "evaluation_bytes")):
            sent[row["round"]][at] += _known(row.get(key))
        if isinstance(row.get("phase"), str):
            seconds[row["phase"]][row["round"]] += _known(row.get("seconds"))
    if any(any(of_round) for of_round in sent.values()):
        yield _bytes(sent, between=record.scenario.topology.graph != "star")
    if seconds:
        yield _phases(seconds)


def _known(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _bytes(sent: Mapping[int, Sequence[float]], *, between: bool) -> Figure:
    """Return the figure of what was sent.

    Args:
        sent: By round: up, down and for evaluation.
        between: Whether clients send each other what others send a server, and receive it as often.
    """
    rounds = sorted(sent)
    totals = np.cumsum([sent[round] for round in rounds], axis=0)
    names = ("between clients" if between else "to the server", "to the clients", "for evaluation alone")
    data = [
        line(name, rounds, totals[:, at] / 1e6, COLOURS[at], dash=DASHES[at])
        for at, name in enumerate(names)
        if totals[-1, at] and not (between and at == 1)
    ]
    rows = [[round, *map(int, sent[round])] for round in rounds]
    layout = over_rounds("MB")
    layout["yaxis"] |= log_axis(totals[-1])
    return Figure(
        "bytes",
        "Bytes sent since the start",
        ["round", "bytes_up", "bytes_down", "evaluation_bytes"],
        rows,
        data,
        layout,
        "Payload of all clients' messages.",
    )


def _phases(seconds: Mapping[str, Mapping[int, float]]) -> Figure:
    rounds = sorted({round for of_phase in seconds.values() for round in of_phase})
    width = -(-len(rounds) // MOST_PHASE_BARS)
    starts = rounds[::width]
    data = []
    for (phase, of_round), (colour, _, _) in zip(seconds.items(), looks(len(seconds)), strict=True):
        of_bar = [
            sum(of_round.get(round, 0.0) for round in rounds[at : at + width])
            for at in range(0, len(rounds), width)
        ]
        data.append(bar(phase, starts, of_bar, colour))
    rows = [
        [round, phase, of_round[round]] for phase, of_round in seconds.items() for round in sorted(of_round)
    ]
    caption = "Wall-clock time on the server." + (f" A bar is {width} rounds." if width > 1 else "")
    return Figure(
        "time",
        "Time by phase",
        ["round", "phase", "seconds"],
        rows,
        data,
        over_rounds("seconds", barmode="stack"),
        caption,
    )


def failure_figures(record: RunRecord) -> Iterator[Figure]:
    """Yield how many clients failed or came too late, round by round; nothing if none did."""
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
    yield Figure(
        "failures",
        "Clients that failed",
        ["round", "client", "what", "times"],
        rows,
        data,
        over_rounds("times", barmode="stack"),
        "They were skipped, and were absent from what failed.",
    )
