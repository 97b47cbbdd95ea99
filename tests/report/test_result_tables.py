"""Pages of results: their tables are made of the folders of benches."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fedkd.report.study import StudyAxis, write_study

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import result_tables

SIDES = """\
| strategy | 0.1: local | 0.1: global | 10: local | 10: global | up (MB) |
| --- | --- | --- | --- | --- | --- |
| local | 50.0 ± 24.8 † → 60.0 ± 24.8 † | 40.0 ± 24.8 † → 50.0 ± 24.8 † | 70.0 ± 0.0 → 80.0 ± 0.0 | 60.0 ± 0.0 → 70.0 ± 0.0 | 2.00 |
| knfu | **+2.0 ± 2.5** | **+2.0 ± 2.5** | **+11.0 ± 2.5 ‡** | **+11.0 ± 2.5 ‡** | 2.00 |
| fedmd* | −30.0 ± 43.0 | −30.0 ± 43.0 | +10.8 ± 2.6 ‡ | +10.8 ± 2.6 ‡ | 2.00 |

Of 16 differences, 8 have an uncorrected interval that excludes 0 (expected by chance: 0.8). Significant: 8 (‡).
"""  # noqa: E501
GLANCE = "| knfu | +6.5 (1 / 0) | +6.5 (1 / 0) | +6.5 (1 / 0) | +6.5 (1 / 0) | 2.00 |\n"


@pytest.fixture
def accuracies(study):
    """The study with all four accuracies, those before fusion ten points lower, and a star."""

    def final(run):
        own = run.final["accuracy_local"]
        values = {"accuracy_before_fusion_local": own - 0.1, "accuracy_local": own, "bytes_up": 2e6}
        return values | {"accuracy_before_fusion_global": own - 0.2, "accuracy_global": own - 0.1}

    names = {"fedmd": "fedmd*"}
    runs = tuple(
        replace(run, levels=(run.levels[0], names.get(run.levels[1], run.levels[1])), final=final(run))
        for run in study.runs
    )
    axes = (study.axes[0], StudyAxis("fusion.strategy", ("local", "knfu", "fedmd*")))
    return replace(study, axes=axes, runs=runs, metrics=(*result_tables.ACCURACIES, "bytes_up"))


def page(*comments):
    return "".join(f"A.\n\n<!-- results: {words} -->\nold\n<!-- end of results -->\n" for words in comments)


def test_tables_are_rewritten(accuracies, tmp_path, monkeypatch):
    path = tmp_path / "page.md"
    columns = "columns = data.partition.alpha"
    path.write_text(page(f"made-up; side by side; {columns}", "made-up; at a glance", "other; long"))
    write_study(accuracies, tmp_path)
    monkeypatch.setattr("sys.argv", ["result_tables.py", str(path), str(tmp_path)])
    assert result_tables.main() == 0
    text = path.read_text()
    assert SIDES in text and GLANCE in text
    assert text.count("old") == 1, "tables of other benches stay"
    assert result_tables.main() == 0 and path.read_text() == text


def test_a_table_may_have_selected_rows_and_its_own_baseline(accuracies):
    words = "made-up; long; data.partition.alpha = 10; rows = knfu | fedmd*; baseline = knfu"
    text = result_tables.renewed(page(words), {"made-up": accuracies})
    assert "| knfu | 81.0 ± 2.5 | 91.0 ± 2.5 |" in text
    whole = result_tables.renewed(page("made-up; long"), {"made-up": accuracies})
    assert "| local, before fusion | local, after fusion | global, before fusion | global, after" in whole
    assert "| 10 | knfu | **81.0** (+11.0 ± 2.5 ‡) | **91.0** (+11.0 ± 2.5 ‡) |" in whole
    # Differences of 0.5, −1 and 0 points; fedmd* is not ranked, so knfu has no rival.
    assert "| fedmd* | 80.8 (−0.2 ± 1.9) | 90.8 (−0.2 ± 1.9) |" in text
    assert "| local |" not in text


def test_recipe_gains_are_paired_by_seed(accuracies):
    names = {"local": "dsfl", "knfu": "dsfl, joint"}
    runs = tuple(
        replace(run, levels=(run.levels[0], names.get(run.levels[1], run.levels[1])))
        for run in accuracies.runs
    )
    axes = (accuracies.axes[0], StudyAxis("fusion.strategy", (*names.values(), "fedmd*")))
    study = replace(accuracies, axes=axes, runs=runs, baseline=("fedmd*",))
    text = result_tables.renewed(page("made-up; recipe"), {"made-up": study})
    # 2 ± 2.5 at α = 0.1 and 11 ± 2.5 at 10; with two differences in a family p = 0.0027 is significant.
    assert "| dsfl | +6.5 (1 / 0) | +6.5 (1 / 0) | +6.5 (1 / 0) | +6.5 (1 / 0) | 2.00 |\n\nOf 8 " in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("made-up; wide", "no form 'wide'"),
        ("made-up; long; data.partition.alpha = 7", "bench 'made-up' has no data.partition.alpha = 7"),
        ("made-up; long; rows = knfu | prose", "bench 'made-up' has no strategy prose"),
    ],
)
def test_missing_results_are_refused(words, told, accuracies, tmp_path, monkeypatch, capsys):
    path = tmp_path / "page.md"
    path.write_text(page(words))
    write_study(accuracies, tmp_path)
    monkeypatch.setattr("sys.argv", ["result_tables.py", str(path), str(tmp_path)])
    assert result_tables.main() == 2
    assert told in capsys.readouterr().err and path.read_text() == page(words)
