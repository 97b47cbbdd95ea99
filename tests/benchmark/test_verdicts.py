"""Verdicts of a bench: pass marks over seeds, their table, and marks about nothing."""

from __future__ import annotations

import pytest

from fedkd.benchmark.runner import bench, plan_bench
from fedkd.benchmark.verdicts import Mark, Verdict, measure, verdict_table
from fedkd.errors import UserError
from fedkd.report.study import Study, StudyAxis, StudyRun

pytestmark = pytest.mark.usefixtures("no_rendering", "no_report")

VALUES = {"a": (0.5, 0.6, 0.7), "b": (0.3, 0.35, 0.55)}
RUNS = [
    StudyRun((label,), seed, {"bwt": value})
    for label, values in VALUES.items()
    for seed, value in enumerate(values, start=1)
]
STUDY = Study("demo", (StudyAxis("policy", ("a", "b")),), ("policy",), (), ("bwt",), tuple(RUNS))


def passes(**told) -> bool:
    runs = {label: [run for run in RUNS if run.levels == (label,)] for label in VALUES}
    return measure(Mark(**({"of": "a", "metric": "bwt"} | told)), runs).passed


def test_a_mark_bounds_the_mean_the_interval_or_every_seed():
    assert passes(least=0.6) and not passes(least=0.61)
    assert passes(most=0.6) and not passes(most=0.59)
    # Differences 0.2, 0.25, 0.15: mean 0.2, half 4.303 · 0.05 / √3 = 0.124.
    assert passes(minus="b", above=0.07) and not passes(minus="b", above=0.08)
    assert not passes(equals=0.6)
    assert passes(minus="a", equals=0.0)
    assert not passes(metric="forgetting", least=-9.0)  # no run has it


def test_a_claim_holds_if_all_its_marks_are_passed():
    marks = [Mark(of="a", minus="b", metric="bwt", above=0.0), Mark(of="a", metric="bwt", least=0.9)]
    told = verdict_table([Verdict(name="one", marks=marks[:1]), Verdict(name="two", marks=marks)], STUDY)
    assert "| one | **holds** | bwt | a − b | +20.0 ± 12.4 points | interval > 0 ✓ |" in told
    assert "| two | **fails** |" in told and told.endswith("95 % interval over seeds.")
    assert "1 of 2 claims hold" in told


def test_a_bench_prints_its_verdicts(tables, write):
    verdicts = [
        {
            "name": "itself",
            "marks": [{"of": "knfu", "minus": "knfu", "metric": "accuracy_local", "equals": 0.0}],
        }
    ]
    tables["scenario"]["rounds"] = 1
    path = write(tables | {"parallel": False, "verdicts": verdicts})
    result = bench(path, out=path.parent / "out")
    assert "| itself | **holds** |" in result.table()
    assert (result.folder / "verdicts.md").read_text().strip() == result.verdicts


def test_a_mark_about_no_setting_is_refused(tables, write):
    verdicts = [{"name": "x", "marks": [{"of": "knfo", "metric": "bwt", "least": 0.0}]}]
    with pytest.raises(UserError, match="no setting 'knfo'; did you mean 'knfu'") as error:
        plan_bench(write(tables | {"verdicts": verdicts}))
    assert error.value.key == "verdicts.0.marks.0.of"
