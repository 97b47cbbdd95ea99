from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedkd.report import curves, figures
from fedkd.report.chart import BASELINE
from fedkd.report.front import accuracy_against_stored, local_against_global
from fedkd.report.metrics import find_metric
from fedkd.report.study import StudyAxis, StudyRun, group_looks
from fedkd.report.style import draw_chart

pytestmark = pytest.mark.usefixtures("no_rendering")

ALL = {
    "rounds-accuracy_local",
    "traffic-accuracy_local",
    "heatmap-accuracy_local",
    "rounds-fusion_gain_local",
    "traffic-fusion_gain_local",
    "heatmap-fusion_gain_local",
    "local-against-global",
}


def test_every_figure_is_drawn(study, tmp_path):
    assert {path.stem for path in figures.draw_figures(study, tmp_path)} == ALL


def test_lines_and_bands_are_means_and_intervals(study):
    figure = draw_chart(curves.over_rounds(study, find_metric("accuracy_local")))
    left, right = figure.axes
    assert [axes.get_title() for axes in (left, right)] == ["Dirichlet α = 0.1", "Dirichlet α = 10"]
    np.testing.assert_allclose(right.lines[1].get_ydata(), [91 / 3, 182 / 3, 91])
    band = right.collections[1].get_paths()[0].vertices
    half = 4.30265273 / 3**0.5
    assert band[band[:, 0] == 3, 1].min() == pytest.approx(91 - half)
    assert band[band[:, 0] == 3, 1].max() == pytest.approx(91 + half)


def test_traffic_is_cumulative_and_flat_without_uploads(study):
    figure = draw_chart(curves.over_traffic(study, find_metric("accuracy_local")))
    level, sending, _ = figure.axes[1].lines
    np.testing.assert_allclose(level.get_ydata(), 80)
    np.testing.assert_allclose(sending.get_xdata(), [1, 2, 3])  # kB
    assert figure._supxlabel.get_text() == "sent so far, up and down (kB)"


@pytest.mark.parametrize(("slowest", "scale"), [(1.0, "linear"), (30.0, "log")])
def test_a_clock_draws_metrics_over_simulated_time(slowest, scale, study, tmp_path):
    def timed(run: StudyRun) -> StudyRun:
        pace = slowest if run.levels[1] == "fedmd" else 1.0
        return replace(run, clock=tuple((r, pace * run.seed * r) for r in (1, 2, 3)))

    study = replace(study, runs=tuple(map(timed, study.runs)))
    axes = draw_chart(curves.over_time(study, find_metric("accuracy_local"))).axes[1]
    assert axes.get_xscale() == scale
    _, knfu, fedmd = axes.lines
    np.testing.assert_allclose(knfu.get_xdata(), [2, 4, 6])  # of seeds 1, 2 and 3
    np.testing.assert_allclose(fedmd.get_xdata(), slowest * np.array([2, 4, 6]))
    np.testing.assert_allclose(knfu.get_ydata(), [91 / 3, 182 / 3, 91])
    added = {"time-accuracy_local", "time-fusion_gain_local"}
    assert {name for name, _ in figures.study_charts(study)} == ALL | added


def test_the_heat_map_shows_means(study):
    axes = draw_chart(figures.heat_map(study, find_metric("accuracy_local"))).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[60, 80], [62, 91], [30, 90.8333333]])
    assert "91.0\n± 2.5" in {text.get_text() for text in axes.texts}


def test_a_heat_map_needs_two_axes(study, tmp_path):
    axes = (*study.axes, StudyAxis("data.clients", ("10",)))
    runs = tuple(replace(run, levels=(*run.levels, "10")) for run in study.runs)
    files = figures.draw_figures(replace(study, axes=axes, runs=runs), tmp_path)
    assert files and not any("heatmap" in path.name for path in files)


def test_a_stream_is_drawn_over_its_tasks(stream_study, tmp_path):
    names = {path.stem for path in figures.draw_figures(stream_study, tmp_path)}
    protocols = ("task_incremental", "class_incremental")
    assert names == {
        *(f"tasks-average_accuracy_{protocol}" for protocol in protocols),
        *(f"heatmap-average_accuracy_{protocol}" for protocol in protocols),
        "accuracy-against-stored",
    }
    figure = draw_chart(curves.over_tasks(stream_study, find_metric("average_accuracy_class_incremental")))
    without, panel = figure.axes
    assert not without.lines, "nobody was tested so under the other head"
    np.testing.assert_allclose(panel.lines[0].get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(panel.lines[0].get_ydata(), [100.5, 51.5, 34.5])
    # Of two seeds an interval would be ± 6.4 points for values a point apart: both are drawn instead.
    assert not panel.collections
    np.testing.assert_allclose([line.get_ydata()[-1] for line in panel.lines[:3]], [34.5, 34, 35])
    assert figure._supxlabel.get_text() == "tasks learned"


def test_accuracy_against_bytes_includes_zero_bytes(stream_study):
    panels = draw_chart(accuracy_against_stored(stream_study)).axes
    axes, bars = panels[0], [bar for panel in panels for bar in panel.containers]
    points = [tuple(bar.lines[0].get_xydata()[0]) for bar in bars]
    assert not any(bar.lines[2] for bar in bars), "two seeds have no interval"
    task = [(0, 81.5), (4, 94.5), (0.1, 97.5)]  # kB, %
    np.testing.assert_allclose(points, [*task, (0, 34.5), (4, 35.5), (0.1, 46.5)])
    assert axes.get_xscale() == "symlog" and axes.get_xlim()[0] < 0
    only = tuple(run for run in stream_study.runs if run.levels[1] == "ewc")
    assert (
        draw_chart(accuracy_against_stored(replace(stream_study, runs=only))).axes[0].get_xscale() == "linear"
    )


def test_groups_have_different_looks_and_the_baseline_is_grey(study):
    looks = group_looks(study)
    assert looks["local",].colour == BASELINE.colour
    many = replace(
        study, axes=(study.axes[0], StudyAxis("fusion.strategy", tuple(map(str, range(30))))), runs=()
    )
    seen = set(group_looks(many).values())
    assert len(seen) == 30


def test_one_seed_and_one_round_are_drawn(study, tmp_path):
    runs = tuple(
        replace(run, curves={name: curve[:1] for name, curve in run.curves.items()})
        for run in study.runs
        if run.seed == 1
    )
    names = {path.stem for path in figures.draw_figures(replace(study, runs=runs), tmp_path)}
    assert names == {name for name in ALL if not name.startswith(("rounds", "traffic"))}


def test_a_failed_figure_does_not_stop_the_others(study, tmp_path, monkeypatch):
    def fails(study, shown):
        raise ValueError("no ink")

    monkeypatch.setattr(figures, "heat_map", fails)
    told: list[str] = []
    names = {path.stem for path in figures.draw_figures(study, tmp_path, told.append)}
    assert names == {name for name in ALL if not name.startswith("heatmap")}
    assert told[0] == "figure heatmap-accuracy_local could not be drawn: ValueError: no ink"


def test_all_marks_are_visible_and_all_labels_are_drawn(study):
    figure = draw_chart(local_against_global(study))
    axes = figure.axes[0]
    ends = np.concatenate([bar.get_segments()[0] for held in axes.containers for bar in held.lines[2]])
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert left < ends[:, 0].min() and ends[:, 0].max() < right
    assert bottom < ends[:, 1].min() and ends[:, 1].max() < top
    assert "local = global" in _named(figure)
    # Global accuracies ten points above the local ones, without spread: equal ones are nowhere near.
    apart = tuple(
        replace(run, final={"accuracy_local": 0.2, "accuracy_global": 0.8})
        for run in study.runs
        if run.levels[1] != "fedmd"
    )
    figure = draw_chart(local_against_global(replace(study, runs=apart)))
    assert [len(panel.lines) for panel in figure.axes] == [2, 2], "a point for every group and block"
    assert _named(figure) == ["local", "knfu"]


def test_a_group_without_a_curve_is_not_in_the_legend(study):
    assert _named(draw_chart(curves.over_rounds(study, find_metric("fusion_gain_local")))) == [
        "knfu",
        "fedmd",
    ]


def test_intervals_are_clipped_to_the_range_of_shares(study):
    runs = tuple(
        replace(run, curves={"accuracy_local": ((1, 0.5), (2, 0.8 + 0.1 * (run.seed - 1)))})
        for run in study.runs
    )
    axes = draw_chart(curves.over_rounds(replace(study, runs=runs), find_metric("accuracy_local"))).axes[0]
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == 100 and axes.get_ylim()[1] > 100


def test_a_constant_has_no_colour_scale(study):
    alike = tuple(replace(run, final={"accuracy_local": 0.5}) for run in study.runs)
    figure = draw_chart(figures.heat_map(replace(study, runs=alike), find_metric("accuracy_local")))
    assert len(figure.axes) == 1 and figure.axes[0].get_title() == find_metric("accuracy_local").label
    assert len(draw_chart(figures.heat_map(study, find_metric("accuracy_local"))).axes) == 2


def test_overlapping_bands_get_one_panel_per_group(study):
    names = tuple(f"strategy {number}" for number in range(11))
    runs = tuple(
        replace(run, levels=(run.levels[0], name))
        for name in names
        for run in study.runs
        if run.levels == ("10", "knfu")
    )
    axes = (StudyAxis("data.partition.alpha", ("10",)), StudyAxis("fusion.strategy", names))
    crowded = replace(study, axes=axes, runs=runs, baseline=())
    figure = draw_chart(curves.over_rounds(crowded, find_metric("accuracy_local")))
    assert [panel.get_title() for panel in figure.axes] == list(names)
    assert not figure.legends
    for panel in figure.axes:
        assert len(panel.lines) == 11 and len(panel.collections) == 1
    # Several blocks have no room for that: lines alone.
    both = (*runs, *(replace(run, levels=("0.1", run.levels[1])) for run in runs))
    axes = (StudyAxis("data.partition.alpha", ("0.1", "10")), axes[1])
    figure = draw_chart(
        curves.over_traffic(replace(crowded, axes=axes, runs=both), find_metric("accuracy_local"))
    )
    assert [(len(panel.lines), len(panel.collections)) for panel in figure.axes] == [(11, 0)] * 2


def _named(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]
