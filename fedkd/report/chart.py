"""A figure as data, drawn by matplotlib into files and by Plotly on a page.

Colours, dashes and symbols have Plotly's names. Colours are those of Okabe and Ito, "Color Universal Design",
2008, which colour-blind readers can tell apart; yellow is left out, because it is lost on white paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal, NamedTuple

import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
COLOUR_MAP = "cividis"
LOG_RATIO = 20
"""From this ratio of the largest size to the smallest, an axis is logarithmic."""
MOST_BANDS = 5
"""Groups with bands that one panel can show."""
MOST_COLUMNS = 4
"""Panels that stand side by side."""


class Look(NamedTuple):
    """A colour, a dash and a symbol; an empty symbol draws no markers."""

    colour: str
    dash: str = "solid"
    symbol: str = ""


BASELINE = Look("#707070", "dash", "x-thin-open")
CONTEXT = Look("#BBBBBB")


def looks(count: int) -> list[Look]:
    """Return as many looks, the first 35 of them different."""
    return [
        Look(
            COLOURS[place % len(COLOURS)],
            DASHES[place // len(COLOURS) % len(DASHES)],
            SYMBOLS[place % len(SYMBOLS)],
        )
        for place in range(count)
    ]


def is_wide(sizes: Sequence[float]) -> bool:
    """Return whether one of several sizes is so far above another that an axis needs a logarithm."""
    known = [size for size in sizes if size > 0]
    return bool(known) and max(known) > LOG_RATIO * min(known)


@dataclass(frozen=True, eq=False)
class Curve:
    """A line with its spread.

    Attributes:
        name: In the legend; empty: it has no entry.
        look: How it is drawn.
        x: `[R]`; None: a level line at the last value.
        y: `[R]`.
        half: Half widths of 95 % intervals, `[R]`; None: no band.
        seeds: Thin lines, `[n, R]`, where there is no band.
        limits: Values that no band exceeds.
        width: Of the line in points.
    """

    name: str
    look: Look
    x: np.ndarray | None
    y: np.ndarray
    half: np.ndarray | None = None
    seeds: np.ndarray | Sequence[np.ndarray] = ()
    limits: tuple[float, float] = (-np.inf, np.inf)
    width: float = 1.6

    @property
    def band(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Lower and upper end of the band."""
        if self.half is None or self.x is None:
            return None
        return np.maximum(self.y - self.half, self.limits[0]), np.minimum(self.y + self.half, self.limits[1])


@dataclass(frozen=True)
class Point:
    """A pair of means with their 95 % intervals, or with the values of few seeds.

    Attributes:
        name: In the legend.
        look: How it is drawn.
        at: The means.
        half: Half widths of the intervals along both axes; None: no interval.
        seeds: Pairs of values, where an interval is missing.
        named: Whether the name stands beside the point too.
    """

    name: str
    look: Look
    at: tuple[float, float]
    half: tuple[float | None, float | None] = (None, None)
    seeds: Sequence[tuple[float, float]] = ()
    named: bool = False


@dataclass(frozen=True, eq=False)
class Matrix:
    """A heat map, first row on top.

    Attributes:
        values: `[R, C]`; NaN is left empty.
        rows: Names of the rows.
        columns: Names of the columns.
        unit: Of the values, beside the colour scale.
        texts: Of the cells, row by row; absent: none.
        limits: Of the colour scale; absent: those of the values.
        outlined: Row and column of cells with a frame.
    """

    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    unit: str
    texts: Sequence[Sequence[str]] | None = None
    limits: tuple[float, float] | None = None
    outlined: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Of the panel.
        marks: In the order of drawing.
        x: Title of the axis across.
        y: Title of the axis up.
        columns: Of the numbers in it, for a CSV file.
        rows: The numbers.
        reach: Limits of both axes; absent: those of the marks.
    """

    title: str
    marks: Sequence[Curve | Point | Matrix]
    x: str
    y: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    reach: tuple[tuple[float, float], tuple[float, float]] | None = None

    def without_spread(self) -> Panel:
        """Return the same panel without bands and thin lines, if it has too many of them."""
        if len(self.marks) <= MOST_BANDS:
            return self
        marks = [replace(m, half=None, seeds=()) if isinstance(m, Curve) else m for m in self.marks]
        return replace(self, marks=marks)


@dataclass(frozen=True)
class Chart:
    """Panels that make up one figure.

    Attributes:
        name: Of its files.
        title: For a person.
        panels: Row by row; None: an empty place.
        across: Panels in a row.
        caption: How to read it.
        scale: Of the axes across.
        ticks: `whole`: at whole numbers only.
        shared: Whether panels have the same axes.
        least: Smallest value above 0 across, where the scale is `symlog`.
    """

    name: str
    title: str
    panels: Sequence[Panel | None]
    across: int = 1
    caption: str = ""
    scale: Literal["linear", "log", "symlog"] = "linear"
    ticks: Literal["", "whole"] = ""
    shared: bool = True
    least: float = 1.0

    @property
    def drawn(self) -> list[Panel]:
        """The panels without empty places."""
        return [panel for panel in self.panels if panel is not None]

    def uncrowded(self) -> Chart:
        """Return the chart for paper: a panel a curve, or no bands, where one panel has too many curves."""
        curves = [[m for m in panel.marks if isinstance(m, Curve)] for panel in self.drawn]
        if not all(curves) or max(map(len, curves), default=0) <= MOST_BANDS:
            return replace(self, panels=[None if p is None else p.without_spread() for p in self.panels])
        if len(self.drawn) > 1:
            return replace(self, panels=[panel.without_spread() for panel in self.drawn])
        (panel,), (of_panel,) = self.drawn, curves
        panels = [
            replace(
                panel,
                title=own.name,
                marks=[
                    *(
                        replace(other, name="", look=CONTEXT, half=None, seeds=(), width=0.8)
                        for other in of_panel
                        if other is not own
                    ),
                    replace(own, name=""),
                ],
            )
            for own in of_panel
        ]
        return replace(self, panels=panels, across=min(MOST_COLUMNS, ceil(len(panels) ** 0.5)))
