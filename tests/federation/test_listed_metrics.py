"""Metrics that a scenario lists, from the key to rows, summary, page and bench."""

from __future__ import annotations

import json
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from numpy.testing import assert_allclose

import fedkd
from fedkd.cli.main import main
from fedkd.clients.evaluation.fusion_effect import GuidanceEffect
from fedkd.errors import RunFailed
from fedkd.plan.load import load_scenario
from fedkd.report.page.record import read_record
from fedkd.report.page.run import run_page
from fedkd.report.study import read_study
from fedkd.report.tables import markdown_table
from fedkd.tracking.events import RunReport
from fedkd.tracking.wording import closing_lines
from fedkd.training.evaluate import Score

pytestmark = pytest.mark.usefixtures("no_report")

BUILT_IN = ["macro_f1", "balanced_accuracy", "auroc", "ece", "nll", "brier"]
OWN = '''
import numpy as np


def doubt(probabilities, targets):
    """Return the mean of one minus the largest probability."""
    return float(1.0 - probabilities.max(axis=1).mean())


doubt.lower_is_better = True
answer = 42


def words(probabilities, targets):
    return "much"


def fails(probabilities, targets):
    raise LookupError("no such thing")


def loss(probabilities, targets):
    return 0.0


def first_has_one_class(labels, clients, generator):
    others = np.flatnonzero(labels != 0)[: 50 * (clients - 1)]
    return [np.flatnonzero(labels == 0)[:50], *np.array_split(others, clients - 1)]
'''


@pytest.fixture
def write(digits_scenario, tmp_path):
    """Return a function from changes to the path of a scenario beside a module of metrics."""
    (tmp_path / "my_metrics.py").write_text(OWN)

    def make(name: str = "scenario", **changes: Any) -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(tomli_w.dumps(digits_scenario | {"rounds": 2} | changes))
        return path

    return make


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_listed_metrics_are_recorded_like_accuracy(write, tmp_path):
    names = [*BUILT_IN, "doubt"]
    path = write(metrics=[*BUILT_IN, "my_metrics:doubt"], evaluate=30)
    result = fedkd.run(load_scenario(path), out=tmp_path / "listed")
    rows, final = rows_of(tmp_path / "listed"), result.summary["final"]

    def places(metric: str) -> set[tuple[Any, ...]]:
        return {(r["round"], r["client"], r["split"]) for r in rows if r["metric"] == metric}

    for name in names:
        assert places(name) == places("accuracy") and len(places(name)) == 2 * 5 * 2
        assert places(f"{name}_before_fusion") == places("accuracy")
        for metric in (name, f"{name}_before_fusion"):
            last = [r for r in rows if (r["round"], r["metric"], r["split"]) == (2, metric, "local")]
            values = [row["value"] for row in last if row["client"] is not None]
            (mean,) = (row["value"] for row in last if row["client"] is None)
            assert_allclose(mean, np.mean(values), rtol=1e-12)
            told = final[f"{metric}_local"]
            assert_allclose(
                [told[key] for key in ("mean", "std", "min", "max", "n")],
                [mean, np.std(values), min(values), max(values), 4],
                rtol=1e-12,
            )
    # The negative log-likelihood is the cross entropy, computed in another way.
    losses, others = (
        [r["value"] for r in rows if r["metric"] == metric and r["split"] != "train"]
        for metric in ("loss", "nll")
    )
    assert_allclose(others, losses, rtol=1e-9)
    changed = [r["value"] for r in rows if r["metric"] == "nll_before_fusion" and r["split"] != "train"]
    assert changed != others

    fedkd.run(load_scenario(write("plain", evaluate=30)), out=tmp_path / "plain")
    listed = {metric for name in names for metric in (name, f"{name}_before_fusion")}
    assert [row for row in rows if row["metric"] not in listed] == rows_of(tmp_path / "plain")
    plain = json.loads((tmp_path / "plain" / "summary.json").read_text())
    assert plain["final"].keys() == {key for key in final if key.rpartition("_")[0] not in listed}
    assert "lower_is_better" not in plain and result.summary["lower_is_better"] == ["doubt"]

    lines = closing_lines(RunReport(tmp_path / "listed", result.summary))
    told = final["auroc_global"]
    assert any(line.startswith(f"global auroc     {told['mean']:.3f}, over 4 clients: sd ") for line in lines)
    page = run_page(read_record(tmp_path / "listed"))
    shown = dict(page.facts)
    assert shown["global macro F1 after fusion (%)"] == f"{100 * final['macro_f1_global']['mean']:.1f}"
    assert shown["doubt, local"] == f"{final['doubt_local']['mean']:.3f}"
    (clients,) = (item for s in page.sections for item in s.items if getattr(item, "name", "") == "clients")
    assert "local ECE after fusion (%)" in clients.columns and "doubt, global" in clients.columns


def test_a_metric_that_is_not_defined_for_a_client_is_left_out(write, tmp_path):
    data = {"clients": 3, "partition": {"scheme": "my_metrics:first_has_one_class"}, "transfer": {"size": 30}}
    result = fedkd.run(load_scenario(write(metrics=["auroc"], data=data)), out=tmp_path / "out")
    rows = [row for row in rows_of(tmp_path / "out") if row["metric"] == "auroc" and row["round"] == 2]
    by_split = {split: [r["client"] for r in rows if r["split"] == split] for split in ("local", "global")}
    assert by_split == {"local": [1, 2, None], "global": [0, 1, 2, None]}
    final = result.summary["final"]
    assert (final["auroc_local"]["n"], final["auroc_global"]["n"]) == (2, 3)


def test_values_before_fusion_outlast_a_message():
    effect, again = GuidanceEffect(), GuidanceEffect()
    scores = {
        "local": Score(0.5, 1.0, np.zeros(2, bool), {"auroc": nan, "nll": 1.5}),
        "global": Score(0.5, 1.0, np.zeros(2, bool), {"auroc": 0.75, "nll": 2.5}),
    }
    effect.begin(3, scores, {}, replaces=False)
    again.restore(effect.state())
    for one in (effect, again):
        found = one.metrics_before_and_after(3, "local", {"auroc": 0.5, "nll": 1.0})
        assert isnan(found.pop("auroc_before_fusion_local")), "undefined before, though not after"
        assert found == {"auroc_local": 0.5, "nll_before_fusion_local": 1.5, "nll_local": 1.0}
        assert one.metrics_before_and_after(4, "global", {"nll": 1.0})["nll_before_fusion_global"] == 1.0
    effect.begin(5, None, {}, replaces=False)
    assert effect.metrics_before_and_after(5, "local", {"nll": 1.0})["nll_before_fusion_local"] == 1.0


@pytest.mark.parametrize("strategy", ["fedbuff", "knfu"])
def test_asynchronous_rounds_have_listed_metrics(strategy, write, tmp_path):
    path = write(metrics=["nll"], fusion={"strategy": strategy}, asynchronous={"buffer": 2}, rounds=3)
    fedkd.run(load_scenario(path), out=tmp_path / "out")
    found: dict[str, dict[tuple[Any, ...], float]] = {}
    for row in rows_of(tmp_path / "out"):
        place = (row["round"], row["client"], row["split"])
        found.setdefault(row["metric"], {})[place] = row["value"]
    tested = {place: value for place, value in found["loss"].items() if place[2] != "train"}
    assert found["nll"].keys() == tested.keys() == found["nll_before_fusion"].keys()
    assert_allclose(list(found["nll"].values()), list(tested.values()), rtol=1e-9)
    gained = [place for place in found["fusion_gain"] if place[1] is not None]
    assert gained and all(found["nll_before_fusion"][place] != found["nll"][place] for place in gained)
    asleep = [place for place in found["nll"] if place[1] is not None and place not in gained]
    assert all(found["nll_before_fusion"][place] == found["nll"][place] for place in asleep)


STREAM = {"continual": {"learner": "naive", "tasks": {"kind": "split", "count": 2}}}


@pytest.mark.parametrize(
    ("metrics", "changes", "words"),
    [
        (["accuracy", "macro_f2"], {}, "metrics.1: no metric named 'macro_f2'; did you mean 'macro_f1'?"),
        (["my_metrics:doupt"], {}, "metrics.0: module 'my_metrics' has no 'doupt'; did you mean 'doubt'?"),
        (["my_metrics:answer"], {}, "metrics.0: 'my_metrics:answer' is not callable"),
        (["my_metrics:loss"], {}, "metrics.0: rows of 'my_metrics:loss' would be called 'loss', like others"),
        ([], {}, "metrics: "),
        (["ece"], STREAM, "metrics: must be ['accuracy'] in a stream of tasks, got ['ece']"),
    ],
)
def test_a_wrong_list_is_refused_in_one_line(metrics, changes, words, write, capsys):
    path = write(metrics=metrics, **changes)
    assert main(["check", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}: {words}") and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("words", "client 0, round 1: TypeError: metric 'words' returned a str; must be a number"),
        ("fails", "client 0, round 1: RuntimeError: metric 'fails' raised LookupError: no such thing"),
    ],
)
def test_a_wrong_value_names_the_metric_and_the_client(name, words, write, tmp_path):
    with pytest.raises(RunFailed, match=words):
        fedkd.run(load_scenario(write(metrics=[f"my_metrics:{name}"])), out=tmp_path / "out")


def test_names_are_found_by_terms_of_the_field(write):
    scenario = load_scenario(write(metrics=["AUC", "Macro-F1", "accuracy", "auroc"]))
    assert scenario.metrics == ["auroc", "macro_f1", "accuracy"]
    assert scenario.metric_names == ("auroc", "macro_f1")


def test_a_bench_ranks_by_the_direction_of_each_metric(write, digits_scenario, tmp_path, no_rendering):
    shown = ["doubt_local", "doubt_before_fusion_global", "ece_global", "macro_f1_local"]
    tables = {
        "scenario": digits_scenario | {"rounds": 1, "metrics": ["ece", "macro_f1", "my_metrics:doubt"]},
        "seeds": 1,
        "parallel": False,
        "metrics": shown,
        "grid": {"training.local_epochs": [1, 8]},
    }
    write()
    (tmp_path / "bench.toml").write_text(tomli_w.dumps(tables))
    fedkd.bench(tmp_path / "bench.toml", out=tmp_path / "out")
    study = read_study(tmp_path / "out")
    assert [metric.better for metric in study.shown] == ["lower", "lower", "lower", "higher"]
    doubts = [run.final["doubt_local"] for run in study.runs]
    assert doubts[1] < doubts[0], "longer training makes models more certain"
    lines = [line for line in markdown_table(study).splitlines() if line.startswith("| 8 ")]
    assert f"**{doubts[1]:.3f}**" in lines[0]


def test_the_command_line_lists_metrics(capsys):
    assert main(["list", "metrics"]) == 0
    lines = capsys.readouterr().out.splitlines()
    of_regression = ["mae", "rmse", "r2", "coverage"]
    assert [line.split()[0] for line in lines] == ["accuracy", *BUILT_IN, *of_regression, '"mod:function"']
    assert main(["list", "metrics", "ece"]) == 0
