"""`fedkd audit`: label mix and membership from a round's uploads."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import fedkd
from fedkd.auditing.label_mix import from_predictions, total_variation
from fedkd.auditing.roc import area, clopper_pearson, epsilon_bound, roc_curve
from fedkd.auditing.scores import log_odds
from fedkd.cli.main import main
from fedkd.errors import UserError

SCENARIO = {
    "name": "audited",
    "rounds": 2,
    "data": {
        "dataset": "digits",
        "clients": 2,
        "partition": {"scheme": "dirichlet", "alpha": 0.5, "samples_per_client": 60},
        "transfer": {"size": 60},
    },
    "clients": [{"model": "mlp", "args": {"hidden": [32]}}],
    "training": {"optimizer": "adam", "lr": 1e-2, "batch_size": 10, "local_epochs": 20},
    "fusion": {"strategy": "knfu"},
    "engine": {"kind": "inline"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("audit") / "run"
    fedkd.run(SCENARIO, out=path, progress=False)
    return path


def test_area_agrees_with_scikit_learn_with_ties():
    generator = np.random.default_rng(0)
    members, others = generator.integers(0, 9, 40).astype(float), generator.integers(0, 7, 30).astype(float)
    truth = np.repeat([1, 0], [40, 30])
    assert area(members, others) == pytest.approx(roc_auc_score(truth, np.concatenate([members, others])))


def test_curve_by_hand():
    curve = roc_curve(np.array([3.0, 2.0, 1.0, 1.0]), np.array([2.0, 1.0, 0.0, 0.0]))
    assert curve.fpr.tolist() == [0, 0, 0.25, 0.5, 1]
    assert curve.tpr.tolist() == [0, 0.25, 0.5, 1, 1]
    assert (curve.tpr_at(0.0), curve.tpr_at(0.3), curve.advantage) == (0.25, 0.5, 0.5)


def test_clopper_pearson_without_hits_has_the_closed_form():
    found = clopper_pearson(0, 100)
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 100))


def test_epsilon_is_largest_for_separated_scores_and_zero_for_equal_ones():
    generator, scores = np.random.default_rng(0), np.arange(200.0)
    low = 0.025 ** (1 / 100)
    assert epsilon_bound(scores + 1000, scores, 0.0, generator) == pytest.approx(np.log(low / (1 - low)))
    assert epsilon_bound(np.ones(200), np.ones(200), 1e-5, generator) == 0


def test_log_odds_by_hand_and_finite_for_certain_answers():
    logits = np.array([[1.0, 2.0, 0.5], [1e4, 0.0, 0.0]])
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    found = log_odds(logits, np.array([1, 0]))
    assert found[0] == pytest.approx(np.log(p[1]) - np.log(1 - p[1]))
    assert found[1] == pytest.approx(1e4 - np.log(2))


def test_label_mix_of_right_one_hot_predictions_is_exact():
    rows = {0: np.eye(3)[[0, 0, 1, 2]], 1: np.eye(3)[[2, 2, 2, 1]]}
    guesses = from_predictions(rows)
    assert guesses["mean"][0].tolist() == guesses["votes"][0].tolist() == [0.5, 0.25, 0.25]
    assert total_variation(np.array([1.0, 0.0, 0.0]), guesses["votes"][1]) == 1.0


def test_audit_finds_members_of_an_overfitted_run_and_repeats_itself(folder):
    first = fedkd.audit(folder)
    written = (folder / "audit.json").read_bytes()
    assert json.loads(written)["round"] == 2
    assert set(first.labels) >= {"uniform", "mean", "votes", "ratio"}
    assert first.labels["mean"].mean < first.labels["uniform"].mean
    assert first.membership["loss"].auc.value > 0.5
    fedkd.audit(folder)
    assert (folder / "audit.json").read_bytes() == written


@pytest.mark.parametrize(
    ("change", "words"),
    [({"round": 3}, "round"), ({"samples": 0}, "samples"), ({"delta": 2.0}, "delta")],
)
def test_hostile_options_are_errors_of_the_user(folder, change, words):
    with pytest.raises(UserError, match=words):
        fedkd.audit(folder, **change)


def test_a_folder_without_a_run_is_one_line(tmp_path, capsys):
    assert main(["audit", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
