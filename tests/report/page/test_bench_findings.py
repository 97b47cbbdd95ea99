"""The sentences at the top of a bench's page, against numbers computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedkd.report.page.bench_findings import bench_findings
from fedkd.report.page.write import write_report
from fedkd.report.study import Study, StudyAxis, StudyRun, write_study


def study_of(
    points: dict[str, tuple[float, ...]],
    metric="accuracy_global",
    *,
    axis="fusion.strategy",
    more=None,
    **other,
) -> Study:
    """Return a bench over one axis with a baseline `local`: final values in percent, seed by seed."""
    runs = [
        StudyRun(
            (level,),
            seed,
            {metric: value / 100, "seconds": 30.0 + 10 * (level != "local")}
            | {name: values[level][seed - 1] / 100 for name, values in (more or {}).items()},
            traffic=((1, 0 if level == "local" else 2_000_000),),
        )
        for level, values in points.items()
        for seed, value in enumerate(values, start=1)
    ]
    levels = tuple(points)
    made = Study(
        "made-up", (StudyAxis(axis, levels),), (axis,), ("local",), (metric, *(more or {})), tuple(runs)
    )
    return replace(made, **other)


# Student's factor of three seeds is 4.303: differences of 3, 4 and 5 points have an interval of
# 4 ± 4.303 · 1 / √3 = 4 ± 2.48, and those of −1, 0 and 4 points one of 1 ± 4.303 · √7 / √3 = 1 ± 6.57.
LOCAL = (50.0, 60.0, 70.0)
BETTER, WORSE, SIMILAR = (53.0, 64.0, 75.0), (47.0, 56.0, 65.0), (49.0, 60.0, 74.0)


def test_a_measurable_gain():
    assert bench_findings(study_of({"local": LOCAL, "knfu": BETTER})) == [
        "knfu raised global accuracy after fusion by 4.0 ± 2.5 points over local (3 seeds).",
        "knfu is better with 3 of 3 seeds.",
        "A run with knfu transferred 2.0 MB and took 40 s, one with local transferred nothing and took 30 s.",
    ]


def test_a_measurable_loss():
    effect, seeds, _ = bench_findings(study_of({"local": LOCAL, "knfu": WORSE}))
    assert effect == "knfu lowered global accuracy after fusion by 4.0 ± 2.5 points over local (3 seeds)."
    assert seeds == "knfu is better with 0 of 3 seeds."


def test_no_measurable_difference():
    effect, seeds, _ = bench_findings(study_of({"local": LOCAL, "knfu": SIMILAR}))
    assert effect == (
        "No measurable difference in global accuracy after fusion between local and knfu:"
        " +1.0 ± 6.6 points (3 seeds)."
    )
    assert seeds == "knfu is better with 1 of 3 seeds."


def test_the_best_of_several_strategies():
    found = bench_findings(study_of({"local": LOCAL, "knfu": BETTER, "fedmd": WORSE, "kta": SIMILAR}))
    assert found[0] == (
        "The best of 3 strategies, knfu, raised global accuracy after fusion by 4.0 ± 2.5 points over local"
        " (3 seeds)."
    )
    # Student's t of 4 points is 6.93, p = 0.020, twice; p of the third is 0.58: both are significant.
    assert found[1] == (
        "Significantly better than local: 1 of 3 settings, worse: 1 (false discovery rate 5 %);"
        " the worst is fedmd (−4.0 ± 2.5 points)."
    )
    worse = tuple(value - 2 for value in WORSE)
    assert bench_findings(study_of({"local": LOCAL, "knfu": worse, "fedmd": WORSE}))[0] == (
        "None of 2 strategies is better than local: the best, fedmd, lowered global accuracy after fusion by"
        " 4.0 ± 2.5 points (3 seeds)."
    )


def test_local_accuracy_beside_the_global_one():
    local = {"accuracy_local": {"local": (90.0, 91.0, 92.0), "knfu": (88.0, 88.0, 88.0)}}
    effect, *_ = bench_findings(study_of({"local": LOCAL, "knfu": BETTER}, more=local))
    assert effect.endswith("over local (3 seeds); the local one changed by −3.0 ± 2.5 points.")


def test_one_seed_has_no_interval():
    assert bench_findings(study_of({"local": (50.0,), "knfu": (53.0,), "fedmd": (49.0,)}))[:2] == [
        "The best of 2 strategies, knfu, raised global accuracy after fusion by 3.0 points over local"
        " (1 seed, no interval).",
        "Better than local: 1 of 2 settings, worse: 1; the worst is fedmd (−1.0 points).",
    ]


def test_a_bench_without_a_baseline_compares_the_best_two():
    points = {"knfu": BETTER, "fedmd": LOCAL, "kta": (49.0, 60.0, 70.0)}
    found = bench_findings(study_of(points, baseline=()))
    assert found[0] == (
        "The best of 3 strategies, knfu, raised global accuracy after fusion by 4.0 ± 2.5 points over the"
        " second best, fedmd (3 seeds)."
    )
    # Differences to kta are 4, 4 and 5 points: 4.33 ± 1.43.
    assert found[1] == "0 of 2 others show no measurable difference from knfu."


def test_smaller_is_better_for_forgetting():
    found = bench_findings(study_of({"local": BETTER, "ewc": LOCAL}, "forgetting", axis="continual.learner"))
    assert found[:2] == [
        "ewc lowered forgetting by 4.0 ± 2.5 points over local (3 seeds).",
        "ewc is better with 3 of 3 seeds.",
    ]


def test_blocks_are_averaged_seed_by_seed(study):
    # Of knfu: (2 + 10) / 2 = 6, (3 + 11) / 2 = 7 and (1 + 12) / 2 = 6.5 points, mean 6.5 ± 4.303 · 0.5 / √3.
    assert bench_findings(study)[0] == (
        "The best of 2 strategies, knfu, raised local accuracy after fusion by 6.5 ± 1.2 points over local"
        " (mean over Dirichlet α, 3 seeds)."
    )


def test_a_bound_and_missing_runs_are_not_ranked():
    made = study_of({"local": LOCAL, "knfu": BETTER, "centralized": (90.0, 90.0, 90.0)})
    bound = replace(made, runs=tuple(replace(run, is_bound="centralized" in run.levels) for run in made.runs))
    assert bench_findings(bound)[0].startswith("knfu raised global accuracy after fusion by 4.0 ± 2.5")
    only = replace(made, runs=tuple(run for run in made.runs if "knfu" in run.levels))
    assert bench_findings(only) == [
        "The global accuracy after fusion is 64.0 ± 27.3 % (3 seeds).",
        "A run with knfu transferred 2.0 MB and took 40 s.",
    ]
    assert bench_findings(replace(made, runs=())) == []


@pytest.mark.parametrize(
    ("label", "named"), [("true", "kkt = true"), ("0.5", "kkt = 0.5"), ("knfu 1", "knfu 1")]
)
def test_bare_labels_are_named_with_their_axis(label, named):
    found = bench_findings(study_of({"local": LOCAL, label: BETTER}, axis="continual.kkt"))
    assert found[0].startswith(f"{named} raised ")


def test_the_page_begins_with_the_sentences(study, tmp_path):
    write_study(study, tmp_path)
    text = write_report([tmp_path]).read_text()
    assert text.index("<h1>") < text.index("<li>The best of 2") < text.index('<dl class="facts">')
