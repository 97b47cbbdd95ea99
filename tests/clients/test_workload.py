"""The estimated share of arithmetic in evaluations."""

from __future__ import annotations

from dataclasses import replace

import pytest

import fedkd
from fedkd.clients.costs.arithmetic import Workload, estimate_workload
from fedkd.clients.costs.model_memory import build_checked_models
from fedkd.data.load import load_data
from fedkd.fusion.distillation.fedhkt import FedHKT
from fedkd.fusion.distillation.mst import MST
from fedkd.fusion.distillation.scalearn import ScaLearn
from fedkd.fusion.experimental.path import Path
from fedkd.fusion.prototypes.fedgen import FedGen
from fedkd.fusion.prototypes.fedgh import FedGH
from fedkd.fusion.prototypes.fedtgp import FedTGP
from fedkd.fusion.server_cost import RoundExtent
from fedkd.fusion.two_models.fedgkt import FedGKT
from fedkd.plan.load import parse_plan
from fedkd.training import evaluate

pytestmark = pytest.mark.usefixtures("no_report")

FORWARD = 2 * (64 * 200 + 200 * 200 + 200 * 10)
"""Operations of the default mlp on 8×8 digits."""
SMALL = 2 * (64 * 64 + 64 * 10)
"""Of the small shared model."""
SGD = {"optimizer": "sgd"}


def estimated(tables) -> tuple[Workload, int]:
    plan = parse_plan(tables)
    data = load_data(plan.scenario)
    found = estimate_workload(plan, data, build_checked_models(plan, data))
    return found, found.test


@pytest.mark.parametrize(
    ("change", "trained", "tested"),
    [
        # 80 training samples, 20 of one's own to be tested on, the common ones C; 60 for transfer.
        ({"fusion": {"strategy": "local"}}, 3 * 80, lambda c: 20 + c),
        ({}, 3 * 80 + 60 + 3 * 60, lambda c: 2 * (20 + c) + 60),
        ({"clients_per_round": 2}, (3 * 80 + 60 + 3 * 60) / 2, lambda c: 1.5 * (20 + c) + 30),
        (
            {"fusion": {"strategy": "knfu", "ce_weight": 1.0, "kd_weight": 0.3}},
            2 * 3 * 80 + 60 + 2 * 3 * 60,
            lambda c: 2 * (20 + c) + 60,
        ),
        ({"fusion": {"strategy": "flwr:FedAvg"}}, 3 * 80, lambda c: 2 * 20 + c + c / 4),
        ({"fusion": {"strategy": "fedrep", "head_epochs": 4}}, 3 * 80 * 5, lambda c: 2 * (20 + c)),
        # A fifth of own samples are kept apart; a trial learns a fifth of the transfer set, and is asked.
        (
            {"fusion": {"strategy": "chosen_beta", "ce_weight": 1.0}},
            3 * 64 + 60 + 2 * 3 * 60 + 5 * (2 * 3 * 12 + 48 + 16),
            lambda c: 2 * (20 + c) + 60,
        ),
        (
            {"fusion": {"strategy": "knfu", "logit_adjustment": "auto"}},
            3 * 64 + 60 + 3 * 60,
            lambda c: 2 * (20 + c + 2 * 16) + 60,
        ),
        # A second network as large as the first, which is trained along and asked as well.
        ({"fusion": {"strategy": "ditto"}}, 2 * 3 * 80, lambda c: 2 * 2 * (20 + c)),
        (
            {"fusion": {"strategy": "pfedme", "personal_steps": 4}, "training": SGD},
            5 * 3 * 80,
            lambda c: 2 * 2 * (20 + c),
        ),
        (
            {"fusion": {"strategy": "two_predictors", "kd_weight": 0.3}},
            3 * 3 * 80 + 60 + 3 * 60,
            lambda c: 2 * 2 * (20 + c) + 60,
        ),
        # Two of four uploads end a round; who is not answered stays as it was measured before.
        (
            {"asynchronous": {"buffer": 2}, "evaluate_every": 3},
            (3 * 80 + 60 + 3 * 60) / 2,
            lambda c: 2 * (20 + c) / 2 + 60 / 2,
        ),
        # What the server trains, here a model like the clients'.
        (
            {"fusion": {"strategy": "mhat", "server_model": "mlp", "server_epochs": 7}},
            3 * 80 + 60 + 3 * 60 + 60 * (3 * 7 + 1) / 4,
            lambda c: 2 * (20 + c) + 60,
        ),
        # All clients are asked, and one student learns three quarters in 8 epochs, which all of it ends.
        (
            {"fusion": {"strategy": "feddf", "server_epochs": 8, "validation": 0.25}},
            3 * 80 + 60 * (4 + 8 * (3 * 0.75 + 0.25)) / 4 + 60 + 3 * 60,
            lambda c: 2 * (20 + c) + 60,
        ),
        # A shared one of one hidden layer of 64, which nobody asks.
        ({"fusion": {"strategy": "fml"}}, 3 * 80 * (1 + SMALL / FORWARD), lambda c: 2 * (20 + c)),
    ],
    ids=[
        *("local", "knfu", "half of them", "both ways", "weights", "phases"),
        *("trials", "kappa", "ditto", "pfedme", "two predictors"),
        *("asynchronous", "a server's model", "feddf", "a shared one"),
    ],
)
def test_evaluation_share_equals_a_hand_count(change, trained, tested, digits_scenario):
    found, common = estimated(digits_scenario | change)
    assert found.training == pytest.approx(4 * FORWARD * trained)
    assert found.evaluation == pytest.approx(4 * FORWARD * tested(common))
    assert found.share == pytest.approx(tested(common) / (trained + tested(common)))


@pytest.mark.parametrize("strategy", ["knfu", "ditto"])
def test_estimated_samples_equal_those_a_run_predicts(strategy, digits_scenario, tmp_path, monkeypatch):
    tables = digits_scenario | {"rounds": 1, "fusion": {"strategy": strategy}}
    found, _ = estimated(tables)
    seen: list[int] = []
    predict = evaluate.predict_in_batches

    def counted(model, outputs, x, *size):
        seen.append(len(x))
        return predict(model, outputs, x, *size)

    monkeypatch.setattr(evaluate, "predict_in_batches", counted)
    fedkd.run(tables, out=tmp_path / "out")
    uploaded = 4 * 60 if strategy == "knfu" else 0
    assert sum(seen) - uploaded == found.evaluation / FORWARD


def test_a_stream_is_evaluated_on_all_tasks_so_far_and_the_next(digits_scenario):
    del digits_scenario["rounds"]
    stream = {"rounds_per_task": 1, "tasks": {"kind": "split", "count": 5}}
    data = digits_scenario["data"] | {"partition": {"scheme": "iid", "samples_per_client": 20}}
    common = digits_scenario | {"data": data, "fusion": {"strategy": "local"}}
    naive, _ = estimated(common | {"continual": stream | {"learner": "naive"}})
    masks, _ = estimated(common | {"continual": stream | {"learner": "supsup"}})
    given, _ = estimated(
        common | {"continual": stream | {"learner": "supsup", "evaluate_without_task": False}}
    )
    single, _ = estimated(
        common | {"continual": stream | {"learner": "naive", "tasks": {"kind": "split", "count": 1}}}
    )
    assert masks.evaluation == pytest.approx(2 * naive.evaluation) == pytest.approx(2 * given.evaluation)
    assert naive.evaluation > 3 * single.evaluation / 5


EXTENT = RoundExtent(clients=4, samples=60, classes=10, private=320, width=200)
"""Four clients with 80 samples each and the default mlp's features."""


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (FedGH(server_epochs=3), 3 * 3 * 40 * 2 * 2000),
        (FedTGP(server_epochs=3, server_batch_size=20), 3 * 3 * 2 * 10 * 2 * (2 * 200**2 + 20 * 200)),
        (FedGen(server_steps=5, server_batch_size=8), 3 * 40 * 2 * (42 * 256 + 256 * 200 + 4 * 2000)),
        (FedGKT(server_epochs=2, server_hidden=(16,)), (3 * 2 + 1) * 320 * 2 * (200 * 16 + 160)),
        (ScaLearn(steps=9, labels=20), 2 * 16 * 10 * (60 + 2 * 10 * 20)),
        (MST(steps=7, neighbours=8), 3 * 7 * 4 * 60 * 2 * (10 * 20 + 20 * 3)),
        (Path(steps=6), 6 * 4 * 4 * 2 * 4 * 60 * 10),
        (FedHKT(server_epochs=2, clusters=2), 60 * (7 * 1e6 + 2 * 1e3)),
    ],
    ids=lambda given: getattr(given, "name", ""),
)
def test_server_training_is_counted(strategy, expected):
    extent = replace(EXTENT, model=1e6, architectures={"mlp": (1e3, 4)})
    assert strategy.server_cost(extent) == pytest.approx(expected)


def test_the_suggested_settings_halve_the_evaluation_share():
    work = Workload(
        training=10.0, evaluation=400.0, clients=20, evaluated=20, every=1, test=1000, test_set=1000
    )
    assert work.share == pytest.approx(400 / 410)
    remedies = work.remedies()
    assert remedies == {"evaluate_every": 40, "data.test_size": 25}, "half a client is none"
    fewer = Workload(100.0, 400.0, 20, 20, 2, 1000, 1000)
    assert fewer.remedies() == {"evaluate_every": 4, "evaluate_clients": 10, "data.test_size": 500}
    answered = replace(fewer, answered=True)
    assert answered.share == pytest.approx(400 / 500), "whenever it is told of"
    assert answered.remedies() == {"evaluate_clients": 5, "data.test_size": 250}
    assert Workload(100.0, 400.0, 20, 20, 4, 1000, 1000).remedies() == {}
    assert Workload(0.0, 0.0, 2, 2, 1, 0, 0).share == 0.0
