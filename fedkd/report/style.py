"""How figures look: readable in print, with colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.report.study import Labels, Study
from fedkd.tracking.atomic import write_bytes_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design", 2008; without the yellow, which is lost on white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BASELINE_COLOUR = "#707070"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LINES = ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)))
DOTS_PER_INCH = 200
COLOUR_MAP = "cividis"
LEGEND_LINE = 0.2
"""Inches that a line of a legend takes."""
LOG_RATIO = 20
"""From this ratio of the largest size in bytes to the smallest, an axis of sizes is logarithmic."""

_PARAMETERS: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with $ in it is a name
    # Ids in an SVG are salted hashes: with a fixed salt, equal figures are equal bytes.
    "svg.hashsalt": "fedkd",
    # Outlines that can be edited and that printers take, where matplotlib's own choice is bitmaps of a kind.
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Look:
    """How one group is drawn in every figure of a study."""

    colour: str
    line: Any  # a name of matplotlib, or a pattern of dashes
    marker: str


def group_looks(study: Study) -> dict[Labels, Look]:
    """Return the look of every group; the baseline is grey, so that the others stand out against it."""
    groups = list(next(iter(study.blocks.values()), {}))
    looks = {}
    others = zip(range(10**6), cycle(COLOURS), cycle(MARKERS), strict=False)
    for group in groups:
        if study.baseline and group == study.baseline:
            looks[group] = Look(BASELINE_COLOUR, "--", "x")
            continue
        number, colour, marker = next(others)
        looks[group] = Look(colour, LINES[number // len(COLOURS) % len(LINES)], marker)
    return looks


def told_by_colour(looks: Mapping[Labels, Look]) -> bool:
    """Return whether no two groups have one colour."""
    return len({look.colour for look in looks.values()}) == len(looks)


FORMATS: Mapping[str, tuple[str, ...]] = {
    "png": ("Software",),
    "svg": ("Date", "Creator"),
    "pdf": ("CreationDate", "Creator", "Producer"),
}
"""Kinds of files that a figure is written as, and what each would say of when and by whom it was made."""


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style while the block runs."""
    import matplotlib

    with matplotlib.rc_context(_PARAMETERS):
        yield


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG, SVG and PDF, each whole or not at all, the same bytes every time."""
    files = []
    for kind, nothing in FORMATS.items():
        drawn = BytesIO()
        figure.savefig(drawn, format=kind, dpi=DOTS_PER_INCH, metadata=dict.fromkeys(nothing))
        files.append(folder / f"{name}.{kind}")
        write_bytes_atomically(files[-1], drawn.getvalue())
    return files


def readable_on(image: Any, value: float) -> str:
    """Return the colour of a text on the cell of a heat map that shows `value`."""
    if isnan(value):
        return "black"
    red, green, blue, _ = image.cmap(image.norm(value))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches."""
    # Not pyplot: it keeps every figure, and asks for a display where there is one.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
