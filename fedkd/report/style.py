"""Charts drawn by matplotlib as PNG, SVG and PDF files for print."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import cycle
from math import ceil, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.plugins import require_package
from fedkd.report.chart import COLOUR_MAP, Chart, Curve, Look, Matrix, Panel, Point
from fedkd.storage import write_bytes_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

LINES: Mapping[str, Any] = {
    "solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (3, 1, 1, 1, 1, 1)),
}  # fmt: skip
MARKERS: Mapping[str, str] = {
    "": "", "circle": "o", "square": "s", "diamond": "D", "cross": "P", "x": "X", "triangle-up": "^",
    "star": "*", "x-thin-open": "x",
}  # fmt: skip
"""Plotly's dashes and symbols, with their names in matplotlib."""
DOTS_PER_INCH = 200
LEGEND_LINE = 0.2  # inches per line of a legend
LONGEST_LABEL = 34  # letters of an axis title in one line
MOST_NUMBERS = 12
"""Up to this number of rows and columns, a heat map shows its numbers and all tick labels."""
BESIDE: Sequence[Mapping[str, Any]] = ({"xytext": (3, 3), "va": "bottom"}, {"xytext": (3, -3), "va": "top"})
"""Alternating positions of the names of points, so that neighbours do not overlap."""

_PARAMETERS: Any = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 9,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "lines.linewidth": 1.6, "lines.markersize": 3.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
    "axes.grid": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.6,
    "text.parse_math": False,  # names may contain $
    "svg.hashsalt": "fedkd",  # a fixed salt of ids makes equal figures equal bytes
    "pdf.fonttype": 42,  # TrueType: editable and printable
}  # fmt: skip
# File formats, with metadata that would differ between writes.
FORMATS: Mapping[str, tuple[str, ...]] = {
    "png": ("Software",), "svg": ("Date", "Creator"), "pdf": ("CreationDate", "Creator", "Producer"),
}  # fmt: skip


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style inside the block.

    Raises:
        MissingPackage: matplotlib is missing.
    """
    matplotlib = require_package("matplotlib", "a figure", "report")
    with matplotlib.rc_context(_PARAMETERS):
        yield


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG, SVG and PDF, atomically, with the same bytes every time."""
    files = []
    for kind, nothing in FORMATS.items():
        drawn = BytesIO()
        figure.savefig(drawn, format=kind, dpi=DOTS_PER_INCH, metadata=dict.fromkeys(nothing))
        files.append(folder / f"{name}.{kind}")
        write_bytes_atomically(files[-1], drawn.getvalue())
    return files


def write_figure(draw: Callable[[], Figure], folder: Path, name: str) -> list[Path]:
    """Draw a figure of a run into its folder and return the files."""
    with house_style():
        return save(draw(), folder, name)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches."""
    # pyplot would keep every figure and use a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_chart(chart: Chart) -> Figure:
    """Draw a chart: panels with shared axes, one legend, one scale of colours."""
    chart = chart.uncrowded()
    panels, rows = chart.drawn, ceil(len(chart.panels) / chart.across)
    entries = _legend_entries(panels)
    pointed = any(isinstance(mark, Point) for panel in panels for mark in panel.marks)
    width, height = _size(chart, rows, pointed)
    if pointed and entries:
        width += 0.5 + 0.068 * max(map(len, entries))
        height = max(height, LEGEND_LINE * len(entries) + 0.3)
    columns = max(1, min(len(entries), int(width / 1.3)))
    height += 0 if pointed else LEGEND_LINE * ceil(len(entries) / columns)
    figure = new_figure(width, height)
    places = figure.subplots(rows, chart.across, sharex=chart.shared, sharey=chart.shared, squeeze=False)
    drawn: list[Axes] = []
    image = None
    for axes, panel in zip(places.ravel(), [*chart.panels, *[None] * places.size], strict=False):
        if panel is None:
            axes.remove()
            continue
        drawn.append(axes)
        axes.set_title(panel.title.replace(", ", "\n"))
        image = _draw(axes, panel) or image
        if panel.reach is not None:
            axes.set_xlim(panel.reach[0])
            axes.set_ylim(panel.reach[1])
    _scale(drawn, chart)
    _titles(figure, drawn, panels, chart)
    if image is not None:
        unit = next(m.unit for panel in panels for m in panel.marks if isinstance(m, Matrix))
        if image.norm.vmin != image.norm.vmax:
            figure.colorbar(image, ax=drawn, label=unit, pad=0.02).outline.set_visible(False)
        else:  # a constant needs no colour scale
            drawn[0].set_title(unit)
    if entries:
        place: Any = "outside right upper" if pointed else "outside upper center"
        figure.legend(handles=list(entries.values()), loc=place, ncols=1 if pointed else columns)
    return figure


def _size(chart: Chart, rows: int, pointed: bool) -> tuple[float, float]:
    """Return the width and height of a figure in inches, without its legend."""
    first = chart.drawn[0]
    if first.marks and isinstance(matrix := first.marks[0], Matrix):
        down, across = np.minimum(matrix.values.shape, MOST_NUMBERS)
        cell = 0.95 if matrix.texts and any("\n" in text for row in matrix.texts for text in row) else 0.45
        label = 0.075 * max(map(len, matrix.rows))
        below = 0.075 * max(map(len, matrix.columns)) if _turned(matrix) else 0.0
        return chart.across * max(cell * across, 1.6) + label + 1.5, max(0.45 * down, 1.6) + 1.3 + below
    if len(chart.panels) == 1:
        return (3.9, 3.2) if pointed else (3.6, 2.4)
    return (2.6 if pointed else 2.3) * chart.across + 0.4, (2.7 if pointed else 2.1) * rows + 0.3


def _legend_entries(panels: Sequence[Panel]) -> dict[str, Any]:
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    for mark in (mark for panel in panels for mark in panel.marks):
        if not isinstance(mark, Matrix) and mark.name and mark.name not in entries:
            style = _style(mark.look) | ({"linestyle": "none"} if isinstance(mark, Point) else {})
            entries[mark.name] = Line2D([], [], label=mark.name, **style)
    return entries


def _style(look: Look) -> dict[str, Any]:
    return {"color": look.colour, "linestyle": LINES[look.dash], "marker": MARKERS[look.symbol]}


def _draw(axes: Axes, panel: Panel) -> AxesImage | None:
    names = cycle(BESIDE)
    for mark in panel.marks:
        if isinstance(mark, Matrix):
            return _draw_matrix(axes, mark)
        if isinstance(mark, Curve):
            _draw_curve(axes, mark)
            continue
        style = _style(mark.look) | {"linestyle": "none"}
        axes.errorbar(*mark.at, xerr=mark.half[0], yerr=mark.half[1], markersize=5, elinewidth=0.8, **style)
        if mark.seeds:
            axes.plot(*zip(*mark.seeds, strict=True), markersize=3, alpha=0.55, **style)
        if mark.named:
            axes.annotate(mark.name, mark.at, textcoords="offset points", fontsize=7, **next(names))
    return None


def _draw_curve(axes: Axes, curve: Curve) -> None:
    style = _style(curve.look)
    if curve.x is None:
        axes.axhline(curve.y[-1], linewidth=curve.width, **style | {"marker": ""})
        return
    axes.plot(curve.x, curve.y, linewidth=curve.width, markevery=max(1, len(curve.y) // 8), **style)
    if curve.band is not None:
        axes.fill_between(curve.x, *curve.band, color=curve.look.colour, alpha=0.18, linewidth=0)
    for seed in curve.seeds:
        axes.plot(curve.x, seed, linewidth=0.6, alpha=0.6, **style | {"marker": ""})


def _draw_matrix(axes: Axes, matrix: Matrix) -> AxesImage:
    from matplotlib.patches import Rectangle

    low, high = matrix.limits or (None, None)
    axes.grid(False)
    image = axes.imshow(matrix.values, cmap=COLOUR_MAP, vmin=low, vmax=high, aspect="auto")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, column in matrix.outlined:
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#D55E00", linewidth=1.6))
    for (row, column), value in np.ndenumerate(matrix.values) if matrix.texts else ():
        if matrix.texts and matrix.texts[row][column]:
            axes.text(column, row, matrix.texts[row][column], ha="center", va="center", fontsize=8,
                      color=readable_on(image, float(value)))  # fmt: skip
    turn: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if _turned(matrix) else {}
    across, down = (range(0, n, -(-n // MOST_NUMBERS)) for n in (len(matrix.columns), len(matrix.rows)))
    axes.set_xticks(list(across), [matrix.columns[at] for at in across], **turn)
    axes.set_yticks(list(down), [matrix.rows[at] for at in down])
    return image


def _turned(matrix: Matrix) -> bool:
    return max(map(len, matrix.columns)) > 8


def readable_on(image: Any, value: float) -> str:
    """Return the text colour on the heat map cell of `value`."""
    if isnan(value):
        return "black"
    red, green, blue, _ = image.cmap(image.norm(value))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _scale(drawn: Sequence[Axes], chart: Chart) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator

    for axes in drawn:
        if chart.ticks == "whole":
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if chart.scale == "log":
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=4))
        elif chart.scale == "symlog":
            axes.set_xscale("symlog", linthresh=chart.least)
        if chart.scale != "linear":
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _titles(figure: Figure, drawn: Sequence[Axes], panels: Sequence[Panel], chart: Chart) -> None:
    """Title the axes once if all panels share their titles, else per panel."""
    up = panels[0].y.replace(", ", ",\n") if len(panels[0].y) > LONGEST_LABEL else panels[0].y
    if len({(panel.x, panel.y) for panel in panels}) == 1:
        figure.supxlabel(panels[0].x, fontsize=9)
        figure.supylabel(up, fontsize=9)
        return
    for axes, panel in zip(drawn, panels, strict=True):
        axes.set_xlabel(panel.x)
        spec = axes.get_subplotspec()
        if spec is not None and spec.is_first_col():
            axes.set_ylabel(panel.y)
