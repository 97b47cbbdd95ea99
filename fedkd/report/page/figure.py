"""A figure of a page: its Plotly traces and its numbers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import isfinite
from typing import Any

import numpy as np

from fedkd.report.chart import COLOUR_MAP, COLOURS, Chart, Curve, Matrix, Panel, Point, is_wide

Trace = dict[str, Any]
Rows = Sequence[Sequence[Any]]

MAIN, SECOND = COLOURS[0], COLOURS[1]
MUTED = "#808080"
SCALE = COLOUR_MAP.capitalize()
BAND_OPACITY = 0.18
MOST_MARKERS = 30  # below this number of points, each has a marker
FEW_CELLS = 200  # up to this number of cells, a heat map shows its numbers


@dataclass(frozen=True)
class Figure:
    """One picture of a page, with a caption and its numbers as a CSV file, `columns` and `rows`."""

    name: str  # of its files, unique on the page
    title: str
    columns: Sequence[str]
    rows: Rows
    data: Sequence[Trace] = ()  # with names that are `plain`
    layout: Mapping[str, Any] = field(default_factory=dict)  # added to the common layout
    caption: str = ""
    height: int = 340  # pixels
    frames: Sequence[tuple[str, Sequence[Trace]]] = ()  # for a slider, by label; replaces `data`


def in_frames(frames: Sequence[tuple[str, Sequence[Trace]]]) -> dict[str, Any]:
    """Return the arguments of a `Figure` with a slider over frames; one frame needs none."""
    return {"frames": frames} if len(frames) > 1 else {"data": frames[0][1]}


def plain(text: object) -> str:
    """Return a name that Plotly shows literally, tags included."""
    return escape(str(text), quote=False)


def number(value: float | None) -> float | None:
    """Return a number for JSON; None if it is not finite."""
    return None if value is None or not isfinite(value) else float(value)


def numbers(values: Iterable[float | None]) -> list[float | None]:
    """Return numbers for JSON."""
    return [number(value) for value in values]


def grid(table: np.ndarray, digits: int = 6) -> list[list[float | None]]:
    """Return a matrix for JSON, rounded to significant digits."""
    return [[float(f"{v:.{digits}g}") if isfinite(v) else None for v in row] for row in table.tolist()]


def line(name: str, x: Sequence[float], y: Iterable[float | None], colour: str, **look: Any) -> Trace:
    """Return a line, with markers if it has few points."""
    y = numbers(y)
    style = {"color": colour, "width": look.pop("width", 2), "dash": look.pop("dash", "solid")}
    mode = "lines+markers" if len(x) < MOST_MARKERS else "lines"
    marker = {"size": 5, "color": colour, "symbol": look.pop("symbol", "circle")}
    return {"type": "scatter", "mode": mode, "name": plain(name), "x": list(x), "y": y, "line": style,
            "marker": marker, **look}  # fmt: skip


def band(
    name: str, x: Sequence[float], low: Iterable[float], high: Iterable[float], colour: str, **look: Any
) -> Trace:
    """Return the area between two lines as one closed trace."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return {
        "type": "scatter", "mode": "lines", "name": plain(name), "x": [*x, *reversed(list(x))],
        "y": [*numbers(high), *reversed(numbers(low))], "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},{BAND_OPACITY})",
        "line": {"width": 0, "color": colour}, "hoverinfo": "skip", **look,
    }  # fmt: skip


def heat_map(
    z: np.ndarray, x: Sequence[Any], y: Sequence[Any], *, unit: str = "", digits: int = 1, **look: Any
) -> Trace:
    """Return a heat map, first row on top; a constant has no colour scale."""
    trace: Trace = {
        "type": "heatmap", "z": grid(z), "x": [plain(v) for v in x], "y": [plain(v) for v in y],
        "colorscale": SCALE, "hoverongaps": False, "xgap": 1, "ygap": 1,
        "colorbar": {"title": {"text": plain(unit), "side": "right"}, "thickness": 12, "outlinewidth": 0},
        "showscale": constant(z) is None, **look,
    }  # fmt: skip
    if z.size <= FEW_CELLS and "text" not in look:
        trace["texttemplate"] = f"%{{z:.{digits}f}}"
    return trace


def constant(z: np.ndarray) -> float | None:
    """Return the only finite value of a matrix; None if there are several or none."""
    known = np.unique(z[np.isfinite(z)])
    return float(known[0]) if known.size == 1 else None


def known_mean(table: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean of the finite values along an axis; NaN without any."""
    known = np.isfinite(table)
    count, total = known.sum(axis=axis), np.where(known, table, 0.0).sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def bar(name: str, x: Sequence[Any], y: Sequence[float | None], colour: str) -> Trace:
    """Return bars; a zero is a line, a missing value is empty."""
    lines = {"color": colour, "width": [4 if value == 0 else 0 for value in y]}
    return {"type": "bar", "name": plain(name), "x": list(x), "y": numbers(y),
            "marker": {"color": colour, "line": lines}}  # fmt: skip


def log_axis(sizes: Iterable[float]) -> dict[str, str]:
    """Return the settings of a logarithmic axis if sizes differ widely."""
    return {"type": "log"} if is_wide(list(sizes)) else {}


def named_axes(x: str, y: str = "") -> dict[str, Any]:
    """Return axes with named ticks, first row on top."""
    return {
        "xaxis": {"title": {"text": x}, "type": "category", "showgrid": False},
        "yaxis": {"title": {"text": y}, "type": "category", "autorange": "reversed", "showgrid": False},
    }


def axes(x: str, y: str, **more: Any) -> dict[str, Any]:
    """Return a layout with titles of both axes."""
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}} | more


def over_rounds(y: str, **more: Any) -> dict[str, Any]:
    """Return the layout of a figure over rounds: ticks are whole rounds."""
    across = {"title": {"text": "round"}, "tickformat": "d"}
    return {"xaxis": across, "yaxis": {"title": {"text": y}}, "hovermode": "x unified"} | more


def over_tasks(y: str, tasks: int) -> dict[str, Any]:
    """Return the layout of a figure over tasks in the order of learning: ticks are whole tasks."""
    across = {"title": {"text": "tasks learned"}, "tickformat": "d", **({"dtick": 1} if tasks <= 20 else {})}
    return {"xaxis": across, "yaxis": {"title": {"text": y}}, "hovermode": "x unified"}


MOST_PANELS = 12  # of a chart on a page


def chart_figures(chart: Chart, most: int = MOST_PANELS) -> list[Figure]:
    """Return a figure for each of a chart's first panels that is not empty."""
    figures = []
    for place, panel in enumerate(chart.drawn[:most]):
        if panel.marks:
            alone = len(chart.panels) == 1 and isinstance(panel.marks[0], Matrix)
            name = chart.name if alone else f"{chart.name}-{place}"
            title = f"{chart.title}: {panel.title}" if panel.title else chart.title
            data = [trace for mark in panel.without_spread().marks for trace in traces(mark, chart.title)]
            layout = _panel_layout(panel, chart)
            figures.append(Figure(name, title, panel.columns, panel.rows, data, layout, chart.caption, 360))
    return figures


def _panel_layout(panel: Panel, chart: Chart) -> dict[str, Any]:
    if isinstance(panel.marks[0], Matrix):
        return named_axes(panel.x, panel.y) | {"showlegend": False}
    layout = axes(panel.x, panel.y, hovermode="x unified" if chart.ticks else "closest")
    curves = [mark for mark in panel.marks if isinstance(mark, Curve)]
    if chart.ticks:
        last = max((max(curve.x) for curve in curves if curve.x is not None), default=99)
        layout["xaxis"] |= {"tickformat": "d", **({"dtick": 1} if last <= 20 else {})}
    if chart.scale == "log":
        layout["xaxis"] |= {"type": "log"}
    if panel.reach is not None:
        layout["xaxis"] |= {"range": panel.reach[0]}
        layout["yaxis"] |= {"range": panel.reach[1]}
    for level in (curve for curve in curves if curve.x is None):
        style, y = {"color": level.look.colour, "dash": level.look.dash, "width": 2}, float(level.y[-1])
        layout.setdefault("shapes", []).append(
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "name": plain(level.name),
             "showlegend": True, "line": style}
        )  # fmt: skip
    return layout


def traces(mark: Curve | Point | Matrix, name: str) -> list[Trace]:
    """Return the traces of a mark; a level line is a shape and has none.

    `name` is the name of marks without one.
    """
    if isinstance(mark, Matrix):
        return [_matrix(mark)]
    title = mark.name or name
    look: dict[str, Any] = {"legendgroup": plain(title), "showlegend": bool(mark.name)}
    if isinstance(mark, Point):
        return _point(mark, title, look)
    if mark.x is None:
        return []
    colour, dash, symbol = mark.look
    hidden, x = look | {"showlegend": False}, mark.x.tolist()
    found = [] if mark.band is None else [band(title, x, *mark.band, colour, **hidden)]
    thin = {"mode": "lines", "opacity": 0.6, "width": 0.8, "dash": dash}
    found += [line(title, x, seed, colour, **thin, **hidden) for seed in mark.seeds]
    own = {"symbol": symbol} if symbol else {"mode": "lines"}
    return [*found, line(title, x, mark.y, colour, dash=dash, **own, **look)]


def _point(point: Point, title: str, look: Mapping[str, Any]) -> list[Trace]:
    colour, _, symbol = point.look
    marker = {"size": 9, "color": colour, "symbol": symbol}
    common = {"type": "scatter", "mode": "markers", "name": plain(title), **look}
    found = common | {"x": [point.at[0]], "y": [point.at[1]], "marker": marker}
    for key, half in zip(("error_x", "error_y"), point.half, strict=True):
        if half is not None:
            found[key] = {"type": "data", "array": [half], "thickness": 1, "color": colour}
    if point.named:
        found |= {"mode": "markers+text", "text": [plain(title)], "textposition": "top right"}
    if not point.seeds:
        return [found]
    x, y = zip(*point.seeds, strict=True)
    faint = {"x": x, "y": y, "showlegend": False, "opacity": 0.55, "marker": marker | {"size": 5}}
    return [found, common | faint]


def _matrix(matrix: Matrix) -> Trace:
    own: dict[str, Any] = {}
    if matrix.limits is not None:
        own = dict(zip(("zmin", "zmax"), matrix.limits, strict=True))
    if matrix.texts is not None:
        texts = [[text.replace("\n", "<br>") for text in row] for row in matrix.texts]
        own |= {"texttemplate": "%{text}", "text": texts}
    return heat_map(matrix.values, matrix.columns, matrix.rows, unit=matrix.unit, **own)
