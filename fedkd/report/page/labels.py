"""The label distribution over clients."""

from collections.abc import Iterator, Sequence

from fedkd.report.chart import looks
from fedkd.report.page import figure as plot
from fedkd.report.page.figure import Figure, Trace
from fedkd.report.page.record import Labels

MOST_BARS = 40  # up to this number of clients, each has its own bar
MOST_ROWS = 1000
PATTERNS = ("", "/", "x", "-", "|", "+", ".", "\\")


def label_figures(labels: Sequence[Labels]) -> Iterator[Figure]:
    """Yield the training samples of each class and client, with a slider over tasks."""
    if not labels:
        return
    everyone = len(labels[0].train)
    shown = range(0, everyone, -(-everyone // MOST_ROWS))
    bars = len(shown) <= MOST_BARS
    draw = _label_bars if bars else _label_map
    frames = plot.in_frames([(f"task {task.name}", draw(task, shown)) for task in labels])
    rows = [
        [task.name, client, task.classes[label], count]
        for task in labels
        for client in shown
        for label, count in enumerate(task.train[client].tolist())
    ]
    layout = plot.named_axes("class", "client")
    if bars:
        layout = plot.axes("client", "training samples", barmode="stack")
        layout["xaxis"] |= {"dtick": 1 if len(shown) <= 20 else 5, "tickformat": "d"}
        layout["legend"] = {"title": {"text": "class  "}}
    caption = "Training samples of each class on each client."
    if shown.step > 1:
        caption += f" The figure shows one client in {shown.step}."
    alike = {plot.constant(task.train[shown].astype(float)) for task in labels}
    if not bars and len(alike) == 1 and None not in alike:
        caption += f" Every count is {alike.pop():g}."
    title, columns = "Label distribution", ["task", "client", "class", "samples"]
    yield Figure("labels", title, columns, rows, layout=layout, caption=caption, height=380, **frames)


def _label_bars(task: Labels, shown: range) -> list[Trace]:
    colours = [colour for colour, _, _ in looks(len(task.classes))]
    different, traces = len(set(colours)), []
    for label, (name, colour) in enumerate(zip(task.classes, colours, strict=True)):
        pattern = PATTERNS[label // different % len(PATTERNS)]  # tells apart bars of one colour
        fill = {"color": colour, "pattern": {"shape": pattern, "size": 5, "solidity": 0.3}}
        y = task.train[shown, label].tolist()
        traces.append({"type": "bar", "name": plot.plain(name), "x": list(shown), "y": y, "marker": fill})
    return traces


def _label_map(task: Labels, shown: range) -> list[Trace]:
    """Return a heat map with a row per client, for thousands of clients."""
    counts = task.train[shown].astype(float)
    return [plot.heat_map(counts, task.classes, shown, unit="samples", digits=0, xgap=0, ygap=0)]
