"""What is in the files of figures."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from fedkd.errors import UserError
from fedkd.plan.schedule import Participation, Schedule, Span
from fedkd.report import figures
from fedkd.report.page import page
from fedkd.report.page.write import report_at_the_end, write_report
from fedkd.report.schedule import draw_schedule_figure
from fedkd.report.study import write_study

KINDS = ("png", "svg", "pdf")


def test_figures_are_written_as_png_svg_and_pdf_with_the_same_bytes_twice(study, tmp_path):
    runs = tuple(replace(run, curves={}, traffic=()) for run in study.runs)
    study = replace(study, runs=runs, metrics=("accuracy_local",))
    first = figures.draw_figures(study, tmp_path / "first")
    second = figures.draw_figures(study, tmp_path / "second")
    names = ("heatmap-accuracy_local", "local-against-global")
    assert [path.name for path in first] == [f"{name}.{kind}" for name in names for kind in KINDS]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert not any(b"<dc:date>" in path.read_bytes() for path in first if path.suffix == ".svg")
    printed = [path.read_bytes() for path in first if path.suffix == ".pdf"]
    assert all(b"/FontFile2" in content and b"/Type3" not in content for content in printed)


def test_a_name_that_looks_like_mathematics_is_a_name(renamed, tmp_path):
    told: list[str] = []
    study = replace(renamed(r"$\badcmd{$"), metrics=("accuracy_local",))
    files = figures.draw_figures(study, tmp_path, told.append)
    assert len(files) == len(KINDS) * 4 and not told


def test_without_matplotlib_a_bench_says_which_extra_has_it_and_goes_on(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told: list[str] = []
    assert figures.draw_figures(study, tmp_path, told.append) == []
    (line,) = told
    assert line.startswith("figures are left out: a figure needs matplotlib; ") and "'.[report]'" in line


def test_without_matplotlib_a_run_has_no_figures_and_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    schedule = Schedule(1, 2, ((Span(None, 1, 2),),), Participation(0))
    assert draw_schedule_figure(schedule, tmp_path) == [] and "needs matplotlib" in caplog.text


def test_without_plotly_the_error_names_the_extra(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    monkeypatch.setattr(page, "library", page.library.__wrapped__)
    write_study(study, tmp_path)
    with pytest.raises(UserError, match=r"report.html needs plotly; .*'\.\[report\]'"):
        write_report([tmp_path])
    told: list[str] = []
    report_at_the_end(tmp_path, told.append)
    assert told[0].startswith("report.html could not be made: report.html needs plotly; ")
