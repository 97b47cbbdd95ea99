from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from fedkd.report.comparison import compare
from fedkd.report.metrics import find_metric
from fedkd.report.tables import csv_table, markdown_table

# Half widths: 4.302653 · s / √3. E.g. local at α = 0.1: s = 0.1, so ± 24.8 points; knfu against local there:
# differences 2, 3, 1 points, s = 1, so 2.0 ± 2.5; local against the best, knfu: contains 0, so †.
# With 2 degrees of freedom p = 1 − t / √(2 + t²): 0.074, 0.095, 0.0027 and 0.0031 for the differences.
# Sorted, they are compared with 0.0125, 0.025, 0.0375 and 0.05, so the last two are significant.
TABLE = """\
# made-up

| Dirichlet α | strategy | seeds | local accuracy after fusion (%) | Δ to local (points) | fusion gain, local (points) | Δ to local (points) |
| --- | --- | --: | --: | --: | --: | --: |
| 0.1 | local | 3 | 60.0 ± 24.8 † | – | – | – |
| 0.1 | knfu | 3 | **62.0 ± 23.7** | +2.0 ± 2.5 | **2.0 ± 2.5** | – |
| 0.1 | fedmd | 3 | 30.0 ± 24.8 † | -30.0 ± 43.0 | **2.0 ± 2.5** | – |
| 10 | local | 3 | 80.0 ± 0.0 | – | – | – |
| 10 | knfu | 3 | **91.0 ± 2.5** | +11.0 ± 2.5 ‡ | **2.0 ± 2.5** | – |
| 10 | fedmd | 3 | 90.8 ± 2.6 † | +10.8 ± 2.6 ‡ | **2.0 ± 2.5** | – |

Means over clients after the last round. Mean ± 95 % confidence interval over 3 seeds (Student's t). \
Δ: difference to local for the same Dirichlet α, paired by seed. \
‡: significant at a false discovery rate of 5 % (Benjamini–Hochberg, over all differences of one metric in this table). \
Of 4 differences, 2 have an uncorrected interval that excludes 0 (expected by chance: 0.2). Significant: 2. \
**Bold**: best mean for the same Dirichlet α. \
†: the 95 % confidence interval of the seed-paired difference from the best contains 0.
"""  # noqa: E501


def test_the_table_equals_the_expected_text(study):
    assert markdown_table(study) == TABLE


def test_without_a_baseline_there_is_no_difference(study):
    table = markdown_table(replace(study, baseline=(), metrics=("accuracy_local",)))
    assert "Δ" not in table and "| 10 | knfu | 3 | **91.0 ± 2.5** |" in table


def test_the_centralized_baseline_is_shown_and_not_ranked(study):
    runs = tuple(replace(run, is_bound=run.levels[1] == "knfu") for run in study.runs)
    table = markdown_table(replace(study, runs=runs, metrics=("accuracy_local",)))
    assert "| 10 | knfu | 3 | 91.0 ± 2.5 | +11.0 ± 2.5 ‡ |" in table
    assert "| 10 | fedmd | 3 | **90.8 ± 2.6** | +10.8 ± 2.6 ‡ |" in table
    assert "Not ranked, as an upper bound: knfu." in table


def test_one_seed_has_no_intervals_and_a_note(study):
    first = tuple(run for run in study.runs if run.seed == 1)
    table = markdown_table(replace(study, runs=first, metrics=("accuracy_local",)))
    assert "| 0.1 | knfu | 1 | **52.0** | +2.0 |" in table
    assert "One seed: there are no intervals." in table and "±" not in table and "†" not in table


def test_failed_runs_leave_gaps_and_are_counted(study):
    kept = tuple(run for run in study.runs if run.levels != ("10", "knfu"))
    table = markdown_table(replace(study, runs=kept, missing=3))
    assert "| 10 | knfu | 0 | – | – | – | – |" in table
    assert "3 of 18 runs are missing." in table


def test_a_missing_seed_is_left_out_of_paired_differences(study):
    kept = tuple(run for run in study.runs if (run.levels, run.seed) != (("10", "local"), 1))
    rows = {(row.block, row.group): row for row in compare(replace(study, runs=kept))}
    entry = rows[("10",), ("knfu",)].entries[0]
    assert (entry.value.seeds, entry.difference.seeds) == (3, 2)
    assert entry.difference.mean == pytest.approx(0.115)


def test_an_unrecorded_metric_is_named(study):
    assert "Not recorded by any run: f1_local." in markdown_table(replace(study, metrics=("f1_local",)))


def test_lower_is_better_for_a_loss(study):
    runs = tuple(replace(run, final={"loss_local": run.final["accuracy_local"]}) for run in study.runs)
    rows = compare(replace(study, runs=runs, metrics=("loss_local",)))
    assert [row.group for row in rows if row.entries[0].best] == [("fedmd",), ("local",)]


def test_the_csv_has_the_same_numbers_in_full_precision(study):
    rows = list(csv.DictReader(io.StringIO(csv_table(study))))
    assert len(rows) == 12
    row = next(r for r in rows if (r["data.partition.alpha"], r["fusion.strategy"]) == ("10", "knfu"))
    assert row["metric"] == "accuracy_local" and row["best"] == "true" and row["tied"] == "false"
    assert row["differs"] == "true" and float(row["p"]) == pytest.approx(1 - 363**0.5 / 365**0.5)
    assert float(row["mean"]) == pytest.approx(0.91)
    assert float(row["difference"]) == pytest.approx(0.11)
    assert float(row["difference_half_width"]) == pytest.approx(4.30265273 * 0.01 / 3**0.5)


@pytest.mark.parametrize(
    ("name", "label", "better"),
    [
        ("accuracy_local", "local accuracy after fusion (%)", "higher"),
        ("loss_train", "training loss", "lower"),
        ("effective_neighbours_train", "effective neighbours", None),
        ("bytes_up", "sent by clients (MB)", "lower"),
    ],
)
def test_metrics_have_titles_and_a_direction(name, label, better):
    assert (find_metric(name).label, find_metric(name).better) == (label, better)


def test_a_stream_table_states_its_protocol(stream_study):
    table = markdown_table(stream_study)
    assert "Streams are measured on the common test sets" in table
    # Two values a point apart: half a width of 12.706 · 0.7071 / √2; the differences do not vary.
    row = "| task | packnet | 2 | **97.5 ± 6.4** | +16.0 ± 0.0 | – | – |"
    assert row in table
    assert "Streams" not in markdown_table(replace(stream_study, metrics=("seconds",)))


def test_a_name_is_shown_literally(renamed):
    """No column of its own, no tag, no link, no picture: none of them is what a name may bring along."""
    odd = "a|b <img src=x> [c](d) ![e](f) **g** `h` $i$"
    lines = markdown_table(renamed(odd)).splitlines()
    rows = [line for line in lines if "img" in line]
    shown = r"a\|b \<img src=x\> \[c\](d) !\[e\](f) \*\*g\*\* \`h\` \$i\$"
    assert len(rows) == 2 and all(f"| {shown} |" in row for row in rows)
    assert all(row.replace(r"\|", "").count("|") == lines[2].count("|") for row in rows)
