"""The table of a bench for a paper: LaTeX with booktabs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fedkd.report.comparison import Entry, Row, compare
from fedkd.report.metrics import Metric
from fedkd.report.study import Study, group_title
from fedkd.report.tables import MISSING, difference_text, explained, number_text

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
    """Return the table of a study, a rule between its blocks, best values in bold.

    It needs `booktabs` alone, and any engine of LaTeX.
    """
    axes = [*study.block_axes, *study.compared_axes]
    heads = [study.title(axis) for axis in axes] + ["seeds"]
    columns = "l" * len(axes) + "r"
    for shown in study.shown:
        heads.append(shown.label)
        columns += "r"
        if study.baseline:
            unit = f" ({shown.difference_unit})" if shown.difference_unit else ""
            heads.append(f"Δ to {group_title(study.baseline)}{unit}")
            columns += "r"
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(f'{study.name}. {explained(study)}')}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9.-]', '-', study.name)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _line(map(escaped, heads)),
        r"\midrule",
        *_body(study),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _body(study: Study) -> Iterator[str]:
    before = None
    for row in compare(study):
        if before is not None and row.block != before:
            yield r"\midrule"
        before = row.block
        yield _line([*map(escaped, [*row.block, *row.group]), str(row.seeds), *_entries(row, study)])


def _entries(row: Row, study: Study) -> Iterator[str]:
    for shown, entry in zip(study.shown, row.entries, strict=True):
        yield _cell(entry, shown)
        if study.baseline:
            yield escaped(difference_text(entry, shown).replace("-", "−"))


def _cell(entry: Entry, shown: Metric) -> str:
    text = number_text(entry.value, shown)
    if text == MISSING:
        return escaped(text)
    told = escaped(text.replace("-", "−"))
    if entry.best:
        # Mathematics takes no \textbf: its signs have a bold of their own.
        return rf"\textbf{{\boldmath {told}}}"
    return told + (r"$^\dagger$" if entry.tied else "")


def _line(cells) -> str:
    return " & ".join(cells) + r" \\"


def escaped(text: str) -> str:
    """Return a text so that LaTeX sets it as it is."""
    return "".join(_SIGNS.get(letter, letter) for letter in re.sub(r"\s+", " ", text))
