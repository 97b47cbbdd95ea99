"""The figure of both accuracies at both moments: where points stand, what is joined, what is beaten."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedkd.report import figures
from fedkd.report.front import curves, local_global_front, undominated
from fedkd.report.study import StudyAxis
from fedkd.report.style import draw_chart

pytestmark = pytest.mark.usefixtures("no_rendering")


def test_unbeaten_points_equal_a_hand_count():
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 3.0), (3.0, 4.5), (0.5, 5.0), (4.0, 1.0), (4.0, 1.0)]
    assert undominated(points) == [(1.0, 5.0), (3.0, 4.5), (4.0, 1.0)]
    assert undominated([]) == []


def test_groups_that_differ_by_a_number_are_joined_in_order():
    titles = [
        "knfu 10",
        "local",
        "knfu 2",
        "knfu 0.5",
        "knfu 2, ρ 0.1",
        "knfu 2, ρ 1",
        "knfu 2, ρ 0.3",
        "dp 1",
    ]
    found = curves([(title,) for title in titles])
    assert [[group for (group,) in curve] for curve in found] == [
        ["knfu 0.5", "knfu 2", "knfu 10"],
        ["knfu 2, ρ 0.1", "knfu 2, ρ 0.3", "knfu 2, ρ 1"],
    ]


@pytest.fixture
def both(study):
    """The study with both moments and three values of a number beside `local`."""
    levels = ("local", "knfu 1", "knfu 10", "knfu 2")
    runs = tuple(
        replace(
            run,
            levels=(run.levels[0], name),
            is_bound=False,
            final={
                "accuracy_before_fusion_local": 0.9 - place / 10,
                "accuracy_before_fusion_global": 0.5 + place / 10,
                "accuracy_local": 0.8,
                "accuracy_global": 0.4 + place / 10 + run.seed / 100,
            },
        )
        for run in study.runs
        if run.levels[1] == "local"
        for place, name in enumerate(levels)
    )
    axes = (study.axes[0], StudyAxis("strategy", levels))
    return replace(study, axes=axes, compared=("strategy",), runs=runs)


def across(line) -> tuple[float, ...]:
    return tuple(round(float(x), 6) for x in line.get_xdata())


def test_each_block_and_moment_has_a_panel(both, tmp_path):
    assert "front" in {path.stem for path in figures.draw_figures(both, tmp_path)}
    figure = draw_chart(local_global_front(both))
    assert [axes.get_title() for axes in figure.axes] == [
        f"Dirichlet α = {alpha}\n{moment} fusion" for moment in ("before", "after") for alpha in ("0.1", "10")
    ]
    across_labels = [axes.get_xlabel() for axes in figure.axes]
    assert ["before" in label for label in across_labels] == [True, True, False, False]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["local", "knfu 1", "knfu 10", "knfu 2", "Pareto front"]
    before, after = figure.axes[0], figure.axes[2]
    lines = {across(line): line.get_ydata() for line in before.lines}
    np.testing.assert_allclose(lines[60, 80, 70], [80, 60, 70])  # knfu 1, 2, 10
    np.testing.assert_allclose(lines[50, 60, 70, 80], [90, 80, 70, 60])  # nobody is beaten
    # After fusion all are as good locally, so the best globally beats them all.
    assert across(after.lines[-1]) == (72,)


def test_a_baseline_bound_beats_no_strategy(both):
    runs = tuple(replace(run, is_bound=run.levels[1] == "knfu 2") for run in both.runs)
    after = draw_chart(local_global_front(replace(both, runs=runs))).axes[2]
    assert across(after.lines[-1]) == (62,)


def test_the_figure_needs_both_accuracies(study, tmp_path):
    assert "front" not in {path.stem for path in figures.draw_figures(study, tmp_path)}


def many(study, blocks: int, groups: int):
    """A study of so many blocks and groups, of which the last beats all others in both accuracies."""
    axes = (
        StudyAxis("data.partition.alpha", tuple(map(str, range(blocks)))),
        StudyAxis("strategy", ("local", *(f"s{chr(97 + group)}" for group in range(1, groups)))),
    )
    runs = tuple(
        replace(
            study.runs[0],
            levels=(block, name),
            is_bound=False,
            final={
                f"accuracy_{moment}{split}": (1 + place) / 20
                for moment in ("", "before_fusion_")
                for split in ("local", "global")
            },
        )
        for block in axes[0].levels
        for place, name in enumerate(axes[1].levels)
    )
    return replace(study, axes=axes, compared=("strategy",), runs=runs, baseline=("local",))


def test_many_blocks_are_stacked(study):
    panels = draw_chart(local_global_front(many(study, 6, 3))).axes
    titles = [axes.get_title().split("\n")[0] for axes in panels]
    assert titles == [f"Dirichlet α = {block}" for block in (0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 4, 5)]
    assert len(panels) == 2 * 6
    rows = sorted({round(axes.get_subplotspec().rowspan.start) for axes in panels})
    assert rows == [0, 1, 2, 3]


def test_unbeaten_strategies_are_named_among_many(study, tmp_path):
    few, crowd = many(study, 2, 8), many(study, 2, 9)
    for shown, names in ((few, set()), (crowd, {"si"})):
        panels = draw_chart(local_global_front(shown)).axes
        assert all({text.get_text() for text in axes.texts} == names for axes in panels)
    # Colours alone no longer tell them apart.
    assert {path.stem for path in figures.draw_figures(few, tmp_path / "few")} >= {
        "local-against-global",
        "front",
    }
    assert "local-against-global" not in {
        path.stem for path in figures.draw_figures(crowd, tmp_path / "crowd")
    }
