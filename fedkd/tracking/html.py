"""HTML tables and texts for notebooks, escaped."""

import re
from collections.abc import Iterable, Sequence
from html import escape

ALIGN_RIGHT = 'style="text-align:right"'
ALIGN_LEFT = 'style="text-align:left"'


def html_table(titles: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """Return a table whose first `names` columns are flush left."""

    def line(tag: str, cells: Sequence[str]) -> str:
        sides = [ALIGN_LEFT if place < names else ALIGN_RIGHT for place in range(len(cells))]
        aligned = [f"<{tag} {side}>{escape(cell)}</{tag}>" for side, cell in zip(sides, cells, strict=True)]
        return f"<tr>{''.join(aligned)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', titles)}</thead><tbody>{body}</tbody></table>"


def html_preformatted(lines: Iterable[str]) -> str:
    """Return lines as preformatted text."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def markdown_to_html(text: str) -> str:
    """Return the HTML of Markdown with headings, tables, bold words and paragraphs."""
    blocks = []
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        if lines[0].startswith("| "):
            head, _, *rows = (re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in lines)
            found = [f"<tr>{''.join(f'<th>{_spoken(cell)}</th>' for cell in head)}</tr>"]
            found += [f"<tr>{''.join(f'<td>{_spoken(cell)}</td>' for cell in row)}</tr>" for row in rows]
            blocks.append(f"<table>{''.join(found)}</table>")
        elif lines[0].startswith("# "):
            blocks.append(f"<h4>{_spoken(lines[0][2:])}</h4>{_paragraph(lines[1:])}")
        else:
            blocks.append(_paragraph(lines))
    return "".join(blocks)


def _paragraph(lines: Sequence[str]) -> str:
    return f"<p>{_spoken(' '.join(lines))}</p>" if lines else ""


def _spoken(text: str) -> str:
    bold = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text))
    return re.sub(r"\\([\\`*\[\]|$])|\\(&[lg]t;)", lambda found: found[1] or found[2], bold)
