"""TeX in a page, drawn when the site is built: readers load no script for it."""

from __future__ import annotations

import html
import re

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

SPAN = re.compile(r'<(?P<tag>span|div) class="arithmatex">(?P<tex>.*?)</(?P=tag)>', re.DOTALL)
SIZE = 10.0
EM = 1 / SIZE


def drawn(page: str) -> str:
    """Return a page's HTML with every formula as a picture in the colour of the text.

    Raises:
        ValueError: A formula that matplotlib's TeX does not know.
    """
    return SPAN.sub(lambda found: _drawn(found["tag"] == "div", html.unescape(found["tex"])), page)


def _drawn(displayed: bool, tex: str) -> str:
    inner = tex.strip().removeprefix(r"\(").removesuffix(r"\)").removeprefix(r"\[").removesuffix(r"\]")
    lines = [line.strip() for line in inner.replace("\n", " ").split(r"\qquad")] if displayed else [inner]
    pictures = [_picture(line.strip().rstrip(",")) for line in lines if line.strip()]
    if displayed:
        return "".join(f'<div class="formula">{picture}</div>' for picture in pictures)
    return "".join(pictures)


def _picture(tex: str) -> str:
    path = TextPath((0, 0), f"${tex}$", size=SIZE, prop=FontProperties(math_fontfamily="cm"))
    box = path.get_extents()
    left, bottom, width, height = box.x0 - 0.3, box.y0 - 0.3, box.width + 0.6, box.height + 0.6
    label = html.escape(tex, quote=True)
    return (
        f'<svg class="formula" role="img" aria-label="{label}" style="width:{width * EM:.3f}em;'
        f'height:{height * EM:.3f}em;vertical-align:{bottom * EM:.3f}em" '
        f'viewBox="{left:.2f} {-bottom - height:.2f} {width:.2f} {height:.2f}">'
        f'<path transform="scale(1 -1)" fill="currentColor" d="{_commands(path)}"/></svg>'
    )


def _commands(path: Path) -> str:
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
    return "".join(
        letters[code] + ("" if code == Path.CLOSEPOLY else " ".join(f"{number:.2f}" for number in points))
        for points, code in path.iter_segments(curves=True, simplify=False)
    )
