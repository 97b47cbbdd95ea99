"""Who was dealt which classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedkd.report.chart import looks
from fedkd.report.page.figure import Figure, Trace, axes, constant, heat_map, in_frames, named_axes, plain
from fedkd.report.page.record import Labels

MOST_BARS = 40
"""Clients up to which each has a bar of its own."""
MOST_ROWS = 1000


def label_figures(labels: Sequence[Labels]) -> Iterator[Figure]:
    """Yield who was dealt how many training samples of which class, with a slider over tasks."""
    if not labels:
        return
    everyone = len(labels[0].train)
    shown = range(0, everyone, -(-everyone // MOST_ROWS))
    clients = len(shown)
    bars = clients <= MOST_BARS
    draw = _label_bars if bars else _label_map
    frames = [(f"task {task.name}", draw(task, shown)) for task in labels]
    rows = [
        [task.name, client, task.classes[label], count]
        for task in labels
        for client in shown
        for label, count in enumerate(task.train[client].tolist())
    ]
    layout = (
        axes("client", "training samples", barmode="stack") if bars else named_axes(x="class", y="client")
    )
    if bars:
        layout["xaxis"] |= {"dtick": 1 if clients <= 20 else 5, "tickformat": "d"}
        layout["legend"] = {"title": {"text": "class  "}}
    caption = "Training samples of each class, as the partition dealt them to the clients."
    if shown.step > 1:
        caption += f" One client in {shown.step} is shown."
    alike = {constant(task.train[shown].astype(float)) for task in labels}
    if not bars and len(alike) == 1 and None not in alike:
        caption += f" Every count is {alike.pop():g}."
    yield Figure(
        "labels",
        "Label distribution",
        ["task", "client", "class", "samples"],
        rows,
        layout=layout,
        caption=caption,
        height=380,
        **in_frames(frames),
    )


def _label_bars(task: Labels, shown: range) -> list[Trace]:
    return [
        {
            "type": "bar",
            "name": plain(name),
            "x": list(shown),
            "y": task.train[shown, label].tolist(),
            "marker": {"color": colour, "pattern": {"shape": pattern, "size": 5, "solidity": 0.3}},
        }
        for label, (name, (colour, pattern)) in enumerate(
            zip(task.classes, _fills(len(task.classes)), strict=True)
        )
    ]


def _fills(count: int) -> list[tuple[str, str]]:
    """Return a colour and a pattern for each of many bars; the patterns tell apart those of one colour."""
    patterns = ("", "/", "x", "-", "|", "+", ".", "\\")
    colours = [colour for colour, _, _ in looks(count)]
    first = len(dict.fromkeys(colours))
    return [(colour, patterns[place // first % len(patterns)]) for place, colour in enumerate(colours)]


def _label_map(task: Labels, shown: range) -> list[Trace]:
    """Return a row a client, one image for thousands of them."""
    return [
        heat_map(
            task.train[shown].astype(float),
            task.classes,
            shown,
            unit="samples",
            digits=0,
            xgap=0,
            ygap=0,
        )
    ]
