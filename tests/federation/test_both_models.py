"""Strategies with a personal and an average model evaluate both."""

from __future__ import annotations

import numpy as np
import pytest

import fedkd
from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.fusion.registry import make_strategy
from fedkd.fusion.two_models.personal_model import PERSONAL, SHARED_KEY
from fedkd.plan.load import parse_plan
from fedkd.report.metrics import find_metric
from fedkd.report.page.federation import accuracy_figures
from fedkd.report.page.record import read_record
from fedkd.report.page.run import facts
from fedkd.tracking.events import RunReport
from fedkd.tracking.wording import closing_lines, format_before_after
from fedkd.training.evaluate import score

pytestmark = pytest.mark.usefixtures("no_report")

BOTH = (PERSONAL, SHARED_KEY)


def found_in(result, name: str, split: str) -> dict:
    rows = [row for row in result.metrics() if (row["metric"], row["split"]) == (name, split)]
    return {(row["round"], row["client"]): row["value"] for row in rows}


@pytest.fixture(scope="module")
def answered_by(make_digits_scenario, tmp_path_factory):
    """Runs of a strategy, the same but for which of the models answers."""

    def run(strategy: str, inference: str):
        tables = make_digits_scenario() | {"fusion": {"strategy": strategy, "inference": inference}}
        if "plain_sgd" in make_strategy(strategy, {}).capabilities.needs:
            tables["training"] |= {"optimizer": "sgd"}
        return fedkd.run(tables, out=tmp_path_factory.mktemp("both") / "out")

    return run


@pytest.mark.parametrize(
    ("strategy", "own"), [("ditto", "personal"), ("apfl", "mixed"), ("pfedme", "personal")]
)
def test_each_model_is_evaluated_like_the_answering_one(strategy, own, answered_by):
    personal, shared = answered_by(strategy, own), answered_by(strategy, "shared")
    for split in ("local", "global"):
        for moment in ("accuracy", "accuracy_before_fusion"):
            for model, other in zip(BOTH, (personal, shared), strict=True):
                expected = found_in(other, moment, split)
                assert found_in(personal, f"{moment}_{model}", split) == expected and len(expected) == 2 * 5
                assert found_in(shared, f"{moment}_{model}", split) == expected
    assert found_in(personal, "accuracy", "global") != found_in(shared, "accuracy", "global")
    assert personal.summary["final"]["bytes_up"] == shared.summary["final"]["bytes_up"]


def test_accuracies_after_training_equal_a_hand_computation(digits_scenario):
    """Prior and all: each model leans to own classes as the one that answers does."""
    tables = digits_scenario | {"fusion": {"strategy": "ditto", "logit_adjustment": 0.3}}
    plan = parse_plan(tables)
    client = ClientFactory(plan, load_data(plan.scenario)).build(0)
    client.complete(client.train(1))
    client.evaluator.measure_before_fusion(1)
    found = client.evaluator.evaluate_models("global", client.evaluator.evaluate("global"))
    counts = np.bincount(client.data.train_y, minlength=10) + 1
    x, y = client.data.global_x, client.data.global_y
    for name, network in (("personal", client.network(PERSONAL)), ("shared", client.network())):
        logits = client.trainer.logits_of(network, x) + 0.3 * np.log(counts / counts.sum())
        assert found[name].accuracy == score(logits, y).accuracy
    before = client.effect.before_and_after_of(1, "shared", "global", 0.5)
    assert before == {"accuracy_before_fusion_shared": found["shared"].accuracy, "accuracy_shared": 0.5}
    again = ClientFactory(plan, load_data(plan.scenario)).build(0)
    again.restore(client.state())
    assert again.effect.before_and_after_of(1, "shared", "global", 0.5) == before
    later = client.effect.before_and_after_of(2, "shared", "global", 0.5)
    assert later == {"accuracy_before_fusion_shared": 0.5, "accuracy_shared": 0.5}, (
        "no guidance of that round"
    )


def test_closing_lines_and_titles_name_both_models(answered_by):
    result = answered_by("ditto", "personal")
    final = result.summary["final"]
    lines = closing_lines(RunReport(result.folder, result.summary))
    began = [line.split()[0] for line in lines[1:7]]
    assert began == ["local", "personal", "shared", "global", "personal", "shared"]
    mean, trained = (
        100 * final[f"{name}_shared_global"]["mean"] for name in ("accuracy", "accuracy_before_fusion")
    )
    assert f"{mean:.1f} %" in lines[6] and f"before fusion {trained:.1f} %" in lines[6]
    assert "before fusion" not in lines[5], "nothing changes the personal model"
    assert (
        find_metric("accuracy_before_fusion_shared_local").label
        == "local accuracy before fusion, shared model (%)"
    )
    assert find_metric("accuracy_personal_global").label == "global accuracy after fusion, personal model (%)"


def test_pages_and_comparisons_show_both_models(answered_by):
    folder = answered_by("ditto", "personal").folder
    compared = {figure.label: figure for figure in fedkd.compare(folder, folder).figures}
    record = read_record(folder)
    figure = next(accuracy_figures(record))
    told = dict(zip(figure.columns, figure.rows[-1], strict=True))
    for model in BOTH:
        mean = record.series("global", f"accuracy_{model}").means[2]
        assert compared[f"global accuracy after fusion, {model} model"].ours == pytest.approx(mean)
        assert told[f"{model} model, after fusion"] == mean
        trained = record.series("global", f"accuracy_before_fusion_{model}").means[2]
        assert (f"global test accuracy, {model} model", format_before_after(trained, mean)) in dict(
            facts(record)
        ).items()
    assert told["personal model, before fusion"] != told["shared model, before fusion"]


def test_other_strategies_report_one_model(digits_scenario, tmp_path):
    result = fedkd.run(digits_scenario | {"rounds": 1}, out=tmp_path / "out")
    assert not [key for key in result.summary["final"] if key.endswith(("personal_local", "shared_local"))]
    assert not [row for row in result.metrics() if row["metric"].endswith(BOTH)]
