"""Unknown keys are refused with advice."""

from __future__ import annotations

import pytest

from fedkd.errors import UserError
from fedkd.plan.load import parse_plan
from fedkd.scenario.explain import ASKED, known_keys
from fedkd.scenario.overrides import apply_values
from fedkd.scenario.schema import Scenario


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("training.lora", "fedkd has no adapters"),
        ("fusion.secure_aggregation", "fedkd has no secure aggregation"),
        ("participation", "use clients_per_round"),
        ("fraction_fit", "use clients_per_round"),
        ("privacy.epsilon", "fedkd has no differential privacy"),
        ("data.num_clients", "use data.clients"),
        ("num_rounds", "use rounds"),
        ("training.local_steps", "use training.local_epochs"),
        ("training.learning_rate", "use training.lr"),
        ("fusion.mu", "use fusion.proximal_mu, with fusion.strategy = 'fedprox'"),
        ("dropout", "use faults.dropout, for networks args"),
        ("training.batchsize", "use training.batch_size"),
        ("model", "use [[clients]] with model"),
        ("lr", "did you mean training.lr?"),
        ("fusion.momentum", "did you mean training.momentum?"),
        ("data.alpha", "did you mean data.partition.alpha or data.transfer.alpha?"),
        ("dataset", "did you mean data.dataset?"),
        ("ruonds", "did you mean 'rounds'?"),
        ("fusion.bta", "did you mean 'beta'?"),
        ("engine.quux", "allowed: "),
    ],
)
def test_unknown_keys_are_refused_with_the_intended_one(key, told, digits_scenario):
    apply_values(digits_scenario, {key: 1})
    with pytest.raises(UserError) as caught:
        parse_plan(digits_scenario)
    assert key.startswith(str(caught.value.key))
    assert caught.value.message.startswith("unknown key") and told in caught.value.message


def test_hints_are_for_missing_keys_and_name_existing_ones():
    top = {name.replace("_", "") for name in Scenario.model_fields} - {"clock"}  # once of `tasks`, too
    assert not top & ASKED.keys()
    for sentence in ASKED.values():
        for word in sentence.replace(",", " ").replace(":", " ").replace(";", " ").split():
            table, dot, key = word.partition(".")
            if dot and table in Scenario.model_fields and table != "fusion":
                assert key.split(".")[0] in known_keys((table,)), word
