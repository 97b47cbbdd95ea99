"""Figures as data, drawn by matplotlib into files and by Plotly on pages.

Colours, dashes and symbols have Plotly's names. Colours are those of Okabe and Ito, "Color Universal Design",
2008, which suit colour-blind readers, without yellow, which is too faint on white paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal, NamedTuple, Self

import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
COLOUR_MAP = "cividis"
LOG_RATIO = 20  # above this ratio of the largest to the smallest size, an axis is logarithmic
MOST_BANDS = 5  # groups with bands in one panel
MOST_COLUMNS = 4  # panels side by side


class Look(NamedTuple):
    """A colour, a dash and a symbol; an empty symbol draws no markers."""

    colour: str
    dash: str = "solid"
    symbol: str = ""


BASELINE = Look("#707070", "dash", "x-thin-open")
CONTEXT = Look("#BBBBBB")


def looks(count: int) -> list[Look]:
    """Return this number of looks; the first 35 differ."""
    colours, dashes = len(COLOURS), len(DASHES)
    return [
        Look(COLOURS[n % colours], DASHES[n // colours % dashes], SYMBOLS[n % len(SYMBOLS)])
        for n in range(count)
    ]


def is_wide(sizes: Sequence[float]) -> bool:
    """Return whether sizes differ so much that an axis needs a logarithm."""
    known = [size for size in sizes if size > 0]
    return bool(known) and max(known) > LOG_RATIO * min(known)


@dataclass(frozen=True, eq=False)
class Curve:
    """A line with its spread."""

    name: str  # in the legend; empty for no entry
    look: Look
    x: np.ndarray | None  # [R]; None for a level line at the last value
    y: np.ndarray  # [R]
    half: np.ndarray | None = None  # half widths of 95 % intervals [R]; None for no band
    seeds: np.ndarray | Sequence[np.ndarray] = ()  # thin lines [n, R], without a band
    limits: tuple[float, float] = (-np.inf, np.inf)  # of bands
    width: float = 1.6  # points

    @property
    def band(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Lower and upper ends of the band."""
        if self.half is None or self.x is None:
            return None
        return np.maximum(self.y - self.half, self.limits[0]), np.minimum(self.y + self.half, self.limits[1])


@dataclass(frozen=True)
class Point:
    """A pair of means with 95 % intervals, or with the values of few seeds."""

    name: str
    look: Look
    at: tuple[float, float]
    half: tuple[float | None, float | None] = (None, None)  # half widths along both axes
    seeds: Sequence[tuple[float, float]] = ()  # without an interval
    named: bool = False  # also beside the point


@dataclass(frozen=True, eq=False)
class Matrix:
    """A heat map, first row on top."""

    values: np.ndarray  # [R, C]; NaN is left empty
    rows: Sequence[str]
    columns: Sequence[str]
    unit: str
    texts: Sequence[Sequence[str]] | None = None  # of the cells, row by row
    limits: tuple[float, float] | None = None  # of the colour scale; None for those of the values
    outlined: Sequence[tuple[int, int]] = ()  # row and column of cells with a frame


@dataclass(frozen=True)
class Panel:
    """A pair of axes, titled `x` and `y`, with its numbers as a CSV file, `columns` and `rows`."""

    title: str
    marks: Sequence[Curve | Point | Matrix]  # in drawing order
    x: str
    y: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    reach: tuple[tuple[float, float], tuple[float, float]] | None = None  # limits of both axes

    def without_spread(self) -> Self:
        """Return the panel without bands and thin lines if it has too many."""
        if len(self.marks) <= MOST_BANDS:
            return self
        marks = [replace(m, half=None, seeds=()) if isinstance(m, Curve) else m for m in self.marks]
        return replace(self, marks=marks)


@dataclass(frozen=True)
class Chart:
    """The panels of one figure."""

    name: str  # of its files
    title: str
    panels: Sequence[Panel | None]  # row by row; None for an empty place
    across: int = 1  # panels per row
    caption: str = ""
    scale: Literal["linear", "log", "symlog"] = "linear"  # of x axes
    ticks: Literal["", "whole"] = ""
    shared: bool = True  # whether panels have the same axes
    least: float = 1.0  # smallest positive x of a symlog scale

    @property
    def drawn(self) -> list[Panel]:
        """All panels without empty places."""
        return [panel for panel in self.panels if panel is not None]

    def uncrowded(self) -> Self:
        """Return the chart for paper: crowded panels lose their bands, or have a panel per curve."""
        curves = [[m for m in panel.marks if isinstance(m, Curve)] for panel in self.drawn]
        if not all(curves) or max(map(len, curves), default=0) <= MOST_BANDS:
            return replace(self, panels=[None if p is None else p.without_spread() for p in self.panels])
        if len(self.drawn) > 1:
            return replace(self, panels=[panel.without_spread() for panel in self.drawn])
        (panel,), (of_panel,) = self.drawn, curves
        grey = [replace(curve, name="", look=CONTEXT, half=None, seeds=(), width=0.8) for curve in of_panel]
        panels = [
            replace(panel, title=own.name, marks=[*grey[:at], *grey[at + 1 :], replace(own, name="")])
            for at, own in enumerate(of_panel)
        ]
        return replace(self, panels=panels, across=min(MOST_COLUMNS, ceil(len(panels) ** 0.5)))
