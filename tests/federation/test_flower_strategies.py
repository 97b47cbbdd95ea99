"""Flower's strategies by name, and what a scenario may say of them."""

from __future__ import annotations

import pytest

from fedkd.errors import UserError
from fedkd.federation.flower_strategies import (
    flower_hyperparameters,
    flower_strategy_names,
    make_flower_strategy,
)


def test_flower_strategies_of_the_papers_are_listed():
    names = flower_strategy_names()
    assert {"FedAvg", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", "FedProx", "QFedAvg"} <= set(names)
    assert {"FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan"} <= set(names)
    assert not any(name.startswith(("FedXgb", "Differential")) for name in names)


def test_hyperparameters_exclude_those_set_by_the_scenario():
    assert flower_hyperparameters("flwr:FedAdam") == flower_hyperparameters("FedAdam")
    assert set(flower_hyperparameters("FedAdam")) == {"eta", "eta_l", "beta_1", "beta_2", "tau"}
    assert flower_hyperparameters("FedAvg") == {}


@pytest.mark.parametrize(
    ("name", "given", "key", "text"),
    [
        ("FedAdm", {}, "fusion.strategy", "did you mean 'FedAdam'"),
        ("FedXgbBagging", {}, "fusion.strategy", "no usable strategy of Flower"),
        ("FedAdam", {"etta": 1.0}, "fusion.etta", "did you mean 'eta'"),
        ("FedAdam", {"fraction_train": 0.5}, "fusion.fraction_train", "unknown key"),
        ("QFedAvg", {}, "fusion.client_learning_rate", "needs a value"),
        ("FedAvgM", {"server_momentum": "much"}, "fusion.server_momentum", "must be a number, got 'much'"),
        ("Krum", {"num_malicious_nodes": 0.5}, "fusion.num_malicious_nodes", "must be a whole number"),
        ("FedProx", {"proximal_mu": True}, "fusion.proximal_mu", "must be a number"),
        ("FedProx", {"proximal_mu": -1}, "fusion.proximal_mu", "must be ≥ 0, got -1"),
        ("FedProx", {"proximal_mu": float("nan")}, "fusion.proximal_mu", "must be ≥ 0, got nan"),
    ],
)
def test_wrong_values_are_refused_with_their_key(name, given, key, text):
    with pytest.raises(UserError, match=text) as caught:
        make_flower_strategy(f"flwr:{name}", given)
    assert caught.value.key == key
