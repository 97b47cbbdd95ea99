"""The table of a bench for a paper: LaTeX with booktabs."""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from fedkd.report.study import Study
from fedkd.report.tables import Cell, Table, comparison_table, explained

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$", "≤": r"$\leq$",
    "≥": r"$\geq$", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "\u202f": r"\,", "\u00a0": "~",
}  # fmt: skip
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta",
    "θ": "theta", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho",
    "σ": "sigma", "τ": "tau", "φ": "phi",
    "χ": "chi", "ψ": "psi", "ω": "omega", "Δ": "Delta", "Σ": "Sigma", "Ω": "Omega",
}  # fmt: skip
_SIGNS = _SPECIAL | {letter: rf"$\{name}$" for letter, name in _GREEK.items()}


def latex_table(study: Study) -> str:
    """Return the table of a study for `booktabs`, with rules between blocks and best values in bold."""
    table, names = comparison_table(study), len(study.axes)
    columns = "l" * names + "r" * (len(table.columns) - names)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(f'{study.name}. {explained(study)}')}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9.-]', '-', study.name)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _line(map(escaped, table.columns)),
        *_body(table, len(study.block_axes)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _body(table: Table, of_block: int) -> Iterator[str]:
    """Yield the rows, with a rule before each block; the first `of_block` cells name the block."""
    for _, rows in groupby(table.rows, key=lambda row: row[:of_block]):
        yield r"\midrule"
        yield from (_line(map(_cell, row)) for row in rows)


def _cell(cell: Any) -> str:
    if not isinstance(cell, Cell):
        return escaped(str(cell))
    told = escaped(cell.text.replace("-", "−"))
    # \textbf has no effect on mathematics, which needs \boldmath.
    return rf"\textbf{{\boldmath {told}}}" if cell.strong else told


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def escaped(text: str) -> str:
    """Return a text with LaTeX's special characters escaped."""
    return "".join(_SIGNS.get(letter, letter) for letter in re.sub(r"\s+", " ", text))
