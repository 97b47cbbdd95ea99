"""`fusion.relations`: one distillation step against the formula, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import digits_tables

from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.models.build import build_group_models
from fedkd.plan.checks.requirements import check_requirements
from fedkd.plan.load import parse_plan
from fedkd.training.losses import angle_huber, distance_huber, graph_kl, kd_kl

TRG = {"kind": "trg", "weight": 2.0, "temperature": 0.5}
RKD = {"kind": "rkd", "weight": 0.5, "distance": 3.0, "angle": 2.0}


def tables(strategy: str, relations: dict, **changes) -> dict:
    fusion = {"strategy": strategy, "distill_batch_size": 1000, "relations": relations}
    training = {"optimizer": "sgd", "lr": 0.5}
    mlp = {"model": "mlp", "args": {"hidden": [6]}}
    return digits_tables() | {"fusion": fusion, "training": training, "clients": [mlp]} | changes


@pytest.mark.parametrize(
    ("strategy", "relations"), [("knfu", TRG), ("knfu", RKD), ("fedmd", TRG), ("knfu", TRG | {"weight": 0.0})]
)
def test_a_distillation_step_descends_on_both_losses(strategy, relations) -> None:
    plan = parse_plan(tables(strategy, relations))
    client = ClientFactory(plan, load_data(plan.scenario)).build(0)
    before = {name: torch.tensor(w, requires_grad=True) for name, w in client.weights().items()}
    x = torch.tensor(client.data.transfer_x).flatten(1)
    z = np.random.default_rng(0).normal(size=(len(x), 10)).astype(np.float32)
    targets = z if strategy == "fedmd" else torch.tensor(z).softmax(dim=1).numpy()
    client.at(1).distil(targets)

    w1, b1, w2, b2 = before.values()
    features = (x @ w1.T + b1).relu()
    logits, wanted = features @ w2.T + b2, torch.tensor(targets)
    told = torch.tensor(z).log_softmax(dim=1)
    value = (logits - wanted).abs().mean() if strategy == "fedmd" else kd_kl(logits, wanted, 1.0)
    if relations["kind"] == "trg":
        value = value + relations["weight"] * graph_kl(features, told, 0.5)
    else:
        value = value + 0.5 * (3 * distance_huber(features, told) + 2 * angle_huber(features, told))
    value.backward()
    for name, w in before.items():
        expected = (w - 0.5 * w.grad).detach().numpy()
        np.testing.assert_allclose(client.weights()[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": {"strategy": "fd", "relations": {}}}, "not allowed with 'fd'"),
        ({"fusion": {"strategy": "flwr:FedAvg", "relations": {}}}, "not allowed with 'flwr:FedAvg'"),
        (
            {"clients": [{"model": "random-forest"}], "training": {}},
            "model 'random-forest' has no `features`",
        ),
    ],
)
def test_unsupported_clients_are_named(changes, message) -> None:
    plan = parse_plan(tables("knfu", {}, **changes))
    with pytest.raises(UserError, match=message) as refused:
        data = load_data(plan.scenario)
        check_requirements(plan, data, build_group_models(plan.scenario, data.input_shape, data.classes))
    assert refused.value.key == "fusion.relations"


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"kind": "graph"}, "fusion.relations.kind"),
        ({"temperature": 0.0}, "fusion.relations.temperature"),
        ({"weight": -1.0}, "fusion.relations.weight"),
        ({"wieght": 1.0}, "fusion.relations.wieght"),
    ],
)
def test_wrong_values_are_named(given, key) -> None:
    with pytest.raises(UserError) as refused:
        parse_plan(tables("knfu", given))
    assert refused.value.key == key
