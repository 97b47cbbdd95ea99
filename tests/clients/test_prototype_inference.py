"""Evaluations that the nearest prototype answers, before and after fusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stopping import StopInRound

import fedkd
from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.errors import Interrupted
from fedkd.plan.load import parse_plan, parse_scenario

pytestmark = pytest.mark.usefixtures("no_report")

CLIENTS = [{"model": "mlp", "args": {"hidden": [16]}}, {"model": "mlp", "args": {"hidden": [32, 16]}}]


@pytest.fixture
def tables(digits_scenario) -> dict[str, Any]:
    fusion = {"strategy": "fedproto", "inference": "prototypes"}
    return digits_scenario | {"clients": CLIENTS, "fusion": fusion, "rounds": 3, "clients_per_round": 3}


def test_the_model_answers_until_there_are_prototypes(tables):
    plan = parse_plan(tables)
    client = ClientFactory(plan, load_data(plan.scenario)).build(0)
    client.complete(client.train(1))
    x, y = client.data.global_x, client.data.global_y
    assert client.evaluator.evaluate("global").accuracy == (client.predict(x).argmax(axis=1) == y).mean()

    owners = np.array([1, 1] + [0] * 8, dtype=np.int32)
    prototypes = np.stack([client.features(x[y == label]).mean(axis=0) for label in range(10)])
    client.complete(client.learn({"prototypes": prototypes, "owners": owners}, 1))
    distances = np.stack([np.linalg.norm(client.features(x) - prototypes[c], axis=1) for c in (0, 1)])
    for split, wanted in (("global", y), ("local", client.data.test_y)):
        score = client.evaluator.evaluate(split)
        assert np.isfinite(score.loss) and not score.correct[wanted > 1].any()
    assert client.evaluator.evaluate("global").accuracy == (distances.argmin(axis=0) == y).mean()


def test_new_prototypes_answer_after_fusion_and_a_run_resumes(tables, tmp_path):
    result = fedkd.run(parse_scenario(tables), out=tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        fedkd.run(parse_scenario(tables), out=tmp_path / "stopped", observers=[StopInRound(1)])
    fedkd.resume(tmp_path / "stopped")
    runs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("unbroken", "stopped")]
    assert runs[0] == runs[1]

    rows = {(r["round"], r["client"], r["split"], r["metric"]): r["value"] for r in result.metrics()}
    gains = [value for (*_, metric), value in rows.items() if metric == "fusion_gain"]
    assert any(gain != 0 for gain in gains), "the model's answers before, prototypes' after"


def test_evaluation_frequency_changes_nothing(tables, tmp_path):
    rows = []
    for every in (1, 3):
        result = fedkd.run(parse_scenario(tables | {"evaluate_every": every}), out=tmp_path / str(every))
        rows.append([row for row in result.metrics() if row["round"] == 3])
    assert rows[0] == rows[1]
