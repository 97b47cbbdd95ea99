"""A figure of a page: what Plotly is to draw, and the numbers in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import cycle, islice
from math import isfinite
from typing import Any

import numpy as np

from fedkd.report.style import COLOURS, LOG_RATIO

Trace = dict[str, Any]
Rows = Sequence[Sequence[Any]]

MAIN, SECOND = COLOURS[0], COLOURS[1]
MUTED = "#808080"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
SCALE = "Cividis"
BAND_OPACITY = 0.18
MOST_MARKERS = 30
"""Points below which each has a marker."""
FEW_CELLS = 200
"""Cells up to which a heat map has its numbers in them."""


@dataclass(frozen=True)
class Figure:
    """What a page shows as one picture, with a caption and its numbers as CSV.

    Attributes:
        name: Of its files, and unique on the page.
        title: For a person.
        columns: Of the numbers.
        rows: The numbers in it, in full.
        data: Traces, as Plotly has them. Names in them are to be `plain`.
        layout: What is special about it, as Plotly has it; the page adds what all have in common.
        caption: How to read it.
        height: Pixels.
        frames: Instead of one picture several, with a slider: label to traces.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Rows
    data: Sequence[Trace] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    caption: str = ""
    height: int = 340
    frames: Sequence[tuple[str, Sequence[Trace]]] = ()


@dataclass(frozen=True)
class Table:
    """A table that sorts and filters.

    Attributes:
        name: Of its file, and unique on the page.
        title: For a person.
        columns: Headings.
        rows: Cells: numbers as numbers, a `Cell` where what is shown is more than the number.
        caption: How to read it.
        open: Whether it is shown before anybody asks.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Rows
    caption: str = ""
    open: bool = True

    @property
    def heads(self) -> list[tuple[str, bool]]:
        """Headings, and whether what is below them are words."""
        return [
            (column, all(isinstance(row[at], str | None) for row in self.rows) and bool(self.rows))
            for at, column in enumerate(self.columns)
        ]


@dataclass(frozen=True)
class Cell:
    """A cell that shows one thing and is sorted by another.

    Attributes:
        text: Shown.
        value: Sorted by and written to files; None: nothing is known.
        strong: Whether it stands out.
    """

    text: str
    value: float | None = None
    strong: bool = False


def plain(text: object) -> str:
    """Return a name so that Plotly, which takes some tags for its own, shows it as it is."""
    return escape(str(text), quote=False)


def number(value: float | None) -> float | None:
    """Return a number as JSON has it: what is not finite is nothing."""
    return None if value is None or not isfinite(value) else float(value)


def numbers(values: Iterable[float | None]) -> list[float | None]:
    """Return numbers as JSON has them."""
    return [number(value) for value in values]


def grid(table: np.ndarray, digits: int = 6) -> list[list[float | None]]:
    """Return a matrix as JSON has it, to so many significant digits."""
    return [[None if not isfinite(v) else float(f"{v:.{digits}g}") for v in row] for row in table.tolist()]


def line(name: str, x: Sequence[float], y: Iterable[float | None], colour: str, **look: Any) -> Trace:
    """Return a line; single points have a marker to be seen by."""
    y = numbers(y)
    style = {"color": colour, "width": look.pop("width", 2), "dash": look.pop("dash", "solid")}
    mode = "lines+markers" if len(x) < MOST_MARKERS else "lines"
    marker = {"size": 5, "color": colour, "symbol": look.pop("symbol", "circle")}
    return {"type": "scatter", "mode": mode, "name": plain(name), "x": list(x), "y": y, "line": style,
            "marker": marker, **look}  # fmt: skip


def band(
    name: str, x: Sequence[float], low: Iterable[float], high: Iterable[float], colour: str, **look: Any
) -> Trace:
    """Return the area between two lines, as one trace: there along the upper one, back along the lower."""
    upper, lower = numbers(high), numbers(low)
    return {
        "type": "scatter", "mode": "lines", "name": plain(name), "x": [*x, *reversed(list(x))],
        "y": [*upper, *reversed(lower)], "fill": "toself", "fillcolor": translucent(colour),
        "line": {"width": 0, "color": colour}, "hoverinfo": "skip", **look,
    }  # fmt: skip


def translucent(colour: str, opacity: float = BAND_OPACITY) -> str:
    """Return a colour `#rrggbb` as it is where others shine through."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def heat_map(
    z: np.ndarray, x: Sequence[Any], y: Sequence[Any], *, unit: str = "", digits: int = 1, **look: Any
) -> Trace:
    """Return a heat map of a matrix, first row on top.

    Small ones have their numbers in the cells. A constant has no colour scale.
    """
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
    """Return the only number in a matrix; None if there are several, or none."""
    known = np.unique(z[np.isfinite(z)])
    return float(known[0]) if known.size == 1 else None


def bar(name: str, x: Sequence[Any], y: Sequence[float | None], colour: str) -> Trace:
    """Return bars that show a zero as a line; a missing value has none."""
    lines = {"color": colour, "width": [4 if value == 0 else 0 for value in y]}
    return {"type": "bar", "name": plain(name), "x": list(x), "y": numbers(y),
            "marker": {"color": colour, "line": lines}}  # fmt: skip


def log_axis(sizes: Iterable[float]) -> dict[str, str]:
    """Return what makes an axis logarithmic if one of several sizes is far above another."""
    known = [size for size in sizes if size > 0]
    return {"type": "log"} if known and max(known) > LOG_RATIO * min(known) else {}


def named_axes(**titles: str) -> dict[str, Any]:
    """Return axes whose ticks are names, first row on top."""
    x, y = titles.get("x", ""), titles.get("y", "")
    return {
        "xaxis": {"title": {"text": x}, "type": "category", "showgrid": False},
        "yaxis": {"title": {"text": y}, "type": "category", "autorange": "reversed", "showgrid": False},
    }


def axes(x: str, y: str, **more: Any) -> dict[str, Any]:
    """Return titles of both axes, for a layout."""
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}} | more


def over_rounds(y: str, **more: Any) -> dict[str, Any]:
    """Return the layout of a figure over rounds: ticks are whole rounds."""
    across = {"title": {"text": "round"}, "tickformat": "d"}
    return {"xaxis": across, "yaxis": {"title": {"text": y}}, "hovermode": "x unified"} | more


def over_tasks(y: str, tasks: int) -> dict[str, Any]:
    """Return the layout of a figure over tasks in the order of learning: ticks are whole tasks."""
    across = {"title": {"text": "tasks learned"}, "tickformat": "d", **({"dtick": 1} if tasks <= 20 else {})}
    return {"xaxis": across, "yaxis": {"title": {"text": y}}, "hovermode": "x unified"}


def looks(count: int) -> list[tuple[str, str, str]]:
    """Return a colour, a dash and a symbol for each of many lines, no two alike among the first 35."""
    colours = list(islice(cycle(COLOURS), count))
    return [
        (colour, DASHES[place // len(COLOURS) % len(DASHES)], SYMBOLS[place % len(SYMBOLS)])
        for place, colour in enumerate(colours)
    ]
