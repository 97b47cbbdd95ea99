from __future__ import annotations

from dataclasses import replace

import pytest

from fedkd.report.latex import escaped, latex_table

BODY = r"""
\toprule
Dirichlet $\alpha$ & strategy & seeds & local accuracy after fusion (\%) & $\Delta$ to local (points) \\
\midrule
0.1 & local & 3 & 60.0 $\pm$ 24.8 $^\dagger$ & -- \\
0.1 & knfu & 3 & \textbf{\boldmath 62.0 $\pm$ 23.7} & +2.0 $\pm$ 2.5 \\
0.1 & fedmd & 3 & 30.0 $\pm$ 24.8 $^\dagger$ & $-$30.0 $\pm$ 43.0 \\
\midrule
10 & local & 3 & 80.0 $\pm$ 0.0 & -- \\
10 & knfu & 3 & \textbf{\boldmath 91.0 $\pm$ 2.5} & +11.0 $\pm$ 2.5 $^\ddagger$ \\
10 & fedmd & 3 & 90.8 $\pm$ 2.6 $^\dagger$ & +10.8 $\pm$ 2.6 $^\ddagger$ \\
\bottomrule
"""


def test_the_latex_table_equals_the_expected_text(study):
    text = latex_table(replace(study, metrics=("accuracy_local",)))
    assert BODY in text and r"\begin{tabular}{llrrr}" in text
    assert r"\caption{made-up. Means over clients after the last round." in text
    assert "Bold: best mean for the same Dirichlet $\\alpha$." in text and "**" not in text
    assert text.isascii(), "any engine takes it"


def test_latex_symbols_are_kept_literally(renamed):
    text = latex_table(renamed("50 %_{x}\n& \\cmd # ~^"))
    told = r"50 \%\_\{x\} \& \textbackslash{}cmd \# \textasciitilde{}\textasciicircum{}"
    assert f"0.1 & {told} & 3 &" in text
    assert [line.count(" & ") for line in text.splitlines() if line.startswith("0.1")] == [6, 6, 6]


@pytest.mark.parametrize(("text", "told"), [("β = 1", r"$\beta$ = 1"), ("a<b", r"a\textless{}b")])
def test_special_characters_are_escaped(text, told):
    assert escaped(text) == told
