"""Clients that share one model."""

from __future__ import annotations

from typing import Any

import pytest

import fedkd
from fedkd.plan.load import parse_plan, parse_scenario
from fedkd.plan.model_sharing import models_after_fusion

pytestmark = pytest.mark.usefixtures("no_report")

N = 3
MLP, WIDER = ({"model": "mlp", "args": {"hidden": [width]}} for width in (8, 12))
ADAM, SGD = {"lr": 0.01, "batch_size": 20}, {"optimizer": "sgd", "lr": 0.1, "batch_size": 20}


def tables(fusion: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": "held",
        "data": {
            "dataset": "digits",
            "clients": N,
            "partition": {"scheme": "dirichlet", "alpha": 0.3, "samples_per_client": 40},
            "transfer": {"size": 20 if fusion["strategy"] == "feddf" else 0},
            "test_size": 100,
        },
        "clients": [MLP],
        "training": SGD if fusion["strategy"] == "scaffold" else ADAM,
        "fusion": fusion,
        "continual": {"rounds_per_task": 1, "tasks": {"kind": "rotated", "count": 4}, "head": "domain"},
        "engine": {"kind": "inline"},
    } | changes


SHARED = [
    {"strategy": "flwr:FedAvg"},
    {"strategy": "feddf", "server_epochs": 2},
    {"strategy": "scaffold"},
    {"strategy": "moon"},
]


@pytest.mark.parametrize("fusion", SHARED, ids=lambda fusion: fusion["strategy"])
def test_a_shared_model_has_one_backward_transfer(fusion, tmp_path):
    result = fedkd.run(parse_scenario(tables(fusion, clients_per_round=1)), out=tmp_path / "run")
    bwt = result.summary["continual"]["bwt"]
    assert bwt["min"] == bwt["max"] != 0.0


def test_models_are_shared_within_architecture_and_task():
    def held(strategy: str, **changes: Any) -> int:
        plan = parse_plan(tables({"strategy": strategy}, **changes))
        models = models_after_fusion(plan.scenario, plan.schedule, plan.strategy)
        assert models == models_after_fusion(plan.scenario, plan.schedule)
        return len(set(models))

    assert [held(name) for name in ("fedntd", "feddf", "fedper", "lg_fedavg", "fedala", "local")] == [
        *[1, 1],
        *[N] * 4,
    ]
    assert held("feddf", clients=[MLP, WIDER]) == 2
    own = {"kind": "rotated", "count": 4, "order": "shuffled"}
    for strategy, models in (("feddf", N), ("moon", 1)):
        assert held(strategy, continual={"rounds_per_task": 1, "tasks": own, "head": "domain"}) == models
