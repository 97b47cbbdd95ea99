"""What is in the files of figures."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from fedkd.errors import UserError
from fedkd.plugins.packages import MissingPackage, Omissions
from fedkd.report import figures
from fedkd.report.page.write import write_final_report, write_report

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


def test_a_name_with_math_symbols_is_drawn_literally(renamed, tmp_path):
    told: list[str] = []
    study = replace(renamed(r"$\badcmd{$"), metrics=("accuracy_local",))
    files = figures.draw_figures(study, tmp_path, told.append)
    assert len(files) == len(KINDS) * 4 and not told


def test_a_bench_without_matplotlib_names_the_extra_and_continues(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    omissions, told = Omissions(), list[str]()
    omissions.report(told.append)
    for folder in ("figures", "more"):
        with omissions.without(folder):
            figures.draw_figures(study, tmp_path / folder, told.append)
    omissions.report(told.append)
    install = "in a clone of fedkd: pip install '.[report]'"
    assert told == [f"skipped: figures, more; a figure needs matplotlib; {install}"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["plotly.offline", "jinja2"])
def test_a_missing_package_refuses_the_page_and_writes_nothing(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    name = package.partition(".")[0]
    with pytest.raises(MissingPackage, match=rf"^report.html needs {name}; .*'\.\[report\]'") as caught:
        write_report([tmp_path], tmp_path / "page")
    assert isinstance(caught.value, UserError) and not list(tmp_path.iterdir())
    with pytest.raises(MissingPackage):
        write_final_report(tmp_path, print)
