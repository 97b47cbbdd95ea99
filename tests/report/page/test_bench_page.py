from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedkd.errors import UserError
from fedkd.report.page.write import write_report
from fedkd.report.statistics import interval
from fedkd.report.study import read_study, write_study


def test_a_study_reads_back_as_written(study, stream_study, tmp_path):
    for made in (study, stream_study):
        write_study(made, tmp_path)
        assert read_study(tmp_path) == made
    lost = replace(study.runs[0], final={"accuracy_local": float("nan"), "loss_local": 0.5})
    write_study(replace(study, runs=(lost,)), tmp_path)
    assert read_study(tmp_path).runs[0].final == {"loss_local": 0.5}


@pytest.mark.parametrize("text", ["{", "{}", "[1]"])
def test_a_folder_without_a_study_is_named(text, tmp_path):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(UserError, match="is not a study of a bench"):
        read_study(tmp_path)


def test_a_clock_adds_a_figure_over_simulated_time(study, tmp_path, payload_of):
    runs = tuple(replace(run, clock=((1, 2.0), (2, 5.0), (3, 9.0))) for run in study.runs)
    write_study(replace(study, runs=runs), tmp_path)
    assert read_study(tmp_path).runs == runs
    figure = payload_of(write_report([tmp_path]))["figures"]["time-accuracy_local-1"]
    lines = {trace["name"]: trace for trace in figure["data"] if trace.get("fill") is None}
    np.testing.assert_allclose(lines["knfu"]["x"], [2, 5, 9])
    np.testing.assert_allclose(lines["knfu"]["y"], [91 / 3, 182 / 3, 91])


def test_a_bench_has_its_own_page(study, tmp_path, payload_of):
    write_study(study, tmp_path)
    (tmp_path / "cells.csv").write_text("strategy,seed,status\nknfu,1,done\nlocal,2,\n")
    (tmp_path / "bench.toml").write_text('name = "made-up"\n')
    path = write_report([tmp_path])
    text, payload = path.read_text(), payload_of(path)
    assert path == tmp_path / "report.html" and "made-up" in text
    table = payload["tables"]["comparison"]
    assert table["columns"][:3] == ["Dirichlet α", "strategy", "seeds"]
    rows = {tuple(row[:2]): row for row in table["rows"]}
    assert rows["10", "knfu"][3] == pytest.approx(91) and rows["10", "knfu"][4] == pytest.approx(11)
    assert '<td data-value="91.0' in text and 'class="strong">91.0 ± 2.5</td>' in text
    assert payload["tables"]["cells"]["rows"] == [["knfu", 1, "done"], ["local", 2, "–"]]
    figure = payload["figures"]["rounds-accuracy_local-1"]
    lines = {trace["name"]: trace for trace in figure["data"] if trace.get("fill") is None}
    np.testing.assert_allclose(lines["knfu"]["y"], [91 / 3, 182 / 3, 91])
    half = interval([0.9, 0.91, 0.92]).half
    assert ["knfu", 3, pytest.approx(0.91), pytest.approx(half)] in figure["rows"]
    assert len([trace for trace in figure["data"] if trace.get("fill")]) == 3
    traffic = payload["figures"]["traffic-accuracy_local-0"]["data"]
    assert {trace["name"] for trace in traffic} == {"knfu", "fedmd"}, "the others send nothing"


def test_widely_spread_bytes_have_a_logarithmic_axis(study, tmp_path, payload_of):
    def sent(times: int) -> str | None:
        runs = tuple(
            replace(run, traffic=tuple((r, times * b) for r, b in run.traffic))
            if "knfu" in run.levels
            else run
            for run in study.runs
        )
        write_study(replace(study, runs=runs), tmp_path)
        figures = payload_of(write_report([tmp_path]))["figures"]
        assert "type" not in figures["rounds-accuracy_local-0"]["layout"]["xaxis"]
        return figures["traffic-accuracy_local-0"]["layout"]["xaxis"].get("type")

    assert (sent(20), sent(21)) == (None, "log")


def test_two_seeds_are_drawn_as_points(study, tmp_path, payload_of):
    write_study(replace(study, runs=tuple(run for run in study.runs if run.seed < 3)), tmp_path)
    data = payload_of(write_report([tmp_path]))["figures"]["rounds-accuracy_local-1"]["data"]
    assert not any(trace.get("fill") for trace in data)
    knfu = [trace for trace in data if trace["name"] == "knfu"]
    ends = sorted(trace["y"][-1] for trace in knfu)
    np.testing.assert_allclose(ends, [90, 90.5, 91])
    assert [trace.get("showlegend", True) for trace in knfu] == [False, False, True]


def test_names_of_variants_are_escaped(renamed, tmp_path, payload_of):
    evil = "<script>alert(1)</script>"
    write_study(renamed(evil), tmp_path)
    path = write_report([tmp_path])
    assert "<script>alert" not in path.read_text()
    names = {trace["name"] for trace in payload_of(path)["figures"]["rounds-accuracy_local-0"]["data"]}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in names


def test_a_bench_without_runs_has_a_page(study, tmp_path, payload_of):
    write_study(replace(study, runs=(), missing=18), tmp_path)
    path = write_report([tmp_path])
    assert "18 of 18 runs are missing." in path.read_text() and not payload_of(path)["figures"]
