"""Names of the field, in any spelling, lead to what there is."""

from __future__ import annotations

import logging

import pytest

from fedkd.errors import UserError
from fedkd.federation.flower_strategies import flower_strategy_names
from fedkd.fusion.registry import STRATEGIES
from fedkd.plan.load import parse_plan, parse_without_plugins
from fedkd.scenario.schema import FLOWER_PREFIX


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("fedavg", "flwr:FedAvg"),
        ("FedAvg", "flwr:FedAvg"),
        ("flwr:fedavg", "flwr:FedAvg"),
        ("Multi-Krum", "flwr:MultiKrum"),
        ("fed_trimmed_avg", "flwr:FedTrimmedAvg"),
        ("KnFu", "knfu"),
        ("LG-FedAvg", "lg_fedavg"),
        ("centralized", "centralized"),
    ],
)
def test_a_strategy_is_found_by_its_published_name(given, meant, digits_scenario):
    for parse in (parse_plan, parse_without_plugins):
        assert parse(digits_scenario | {"fusion": {"strategy": given}}).scenario.fusion.strategy == meant


def test_every_flower_strategy_has_a_plain_name():
    named = {STRATEGIES.canonical(name.lower()) for name in flower_strategy_names()}
    assert named == {FLOWER_PREFIX + name for name in flower_strategy_names()}


def test_fedprox_is_not_suggested_as_fedavg(digits_scenario, caplog, capsys):
    logging.getLogger("flwr").addHandler(caplog.handler)
    plan = parse_plan(digits_scenario | {"fusion": {"strategy": "fedprox"}})
    assert plan.scenario.fusion.model_extra == {"proximal_mu": 0.01}
    parse_plan(digits_scenario | {"fusion": {"strategy": "flwr:FedProx", "proximal_mu": 0.0}})
    logging.getLogger("flwr").removeHandler(caplog.handler)
    assert caplog.text == "" and capsys.readouterr() == ("", "")


def test_a_learner_is_found_by_its_published_name(digits_scenario):
    tables = {key: value for key, value in digits_scenario.items() if key != "rounds"}
    tables["data"] = tables["data"] | {"partition": {"samples_per_client": 50}}
    for given, meant in (("EWC", "ewc"), ("A-GEM", "agem"), ("DER++", "der++"), ("fine-tuning", "naive")):
        plan = parse_plan(tables | {"continual": {"learner": given}})
        assert plan.scenario.continual.learner == meant and plan.learner.name == meant


def test_an_unknown_name_suggests_the_nearest_of_all(digits_scenario):
    with pytest.raises(UserError, match="no fusion strategy named 'fedavgs'; did you mean 'fedavg'"):
        parse_plan(digits_scenario | {"fusion": {"strategy": "fedavgs"}})
    with pytest.raises(UserError, match=r"client_learning_rate: flwr:QFedAvg needs a value, such as that of"):
        parse_plan(digits_scenario | {"fusion": {"strategy": "qfedavg"}})
