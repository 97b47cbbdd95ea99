"""What strategies return is checked, and has its effect where it says."""

from __future__ import annotations

import numpy as np
import pytest
import tomli_w

import fedkd
from fedkd.data.federated import load_federated_data
from fedkd.federation.faults import ClientFaults, Poison
from fedkd.federation.guidance import check_guidance, guidance_records
from fedkd.federation.participant import LocalClients
from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.scenario.load import load_scenario, parse_scenario


def knowledge(clients: int = 2) -> Knowledge:
    logits = np.zeros((clients, 3, 4), dtype=np.float32)
    return Knowledge(tuple(range(clients)), logits, np.ones(clients, dtype=np.int64))


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(targets=None, shared={"label_logits": np.array([0.0, np.nan])}),
        Guidance(targets=None, personal=[{"parameters": np.zeros(2)}, {"parameters": np.array([np.nan, 0])}]),
    ],
)
def test_guidance_without_targets_is_checked_for_nan_too(guidance):
    with pytest.raises(ValueError, match="are not all numbers"):
        check_guidance(guidance, knowledge())


def test_clients_of_one_student_share_one_record():
    student, other = {"parameters": np.ones(2)}, {"parameters": np.zeros(2)}
    records = guidance_records(Guidance(None, personal=[student, other, student]), knowledge(3))
    assert records[0] is records[2] and records[0] is not records[1]


def run(tables: dict, tmp_path, name: str) -> list:
    path = tmp_path / f"{name}.toml"
    path.write_text(tomli_w.dumps(tables))
    return fedkd.run(load_scenario(path), out=tmp_path / name).metrics()


def test_feddf_without_distillation_is_fedavg(digits_scenario, tmp_path):
    """All begin alike, so the average of what they learned is that of federated averaging."""
    accuracies = {}
    for name, fusion in (
        ("feddf", {"strategy": "feddf", "server_epochs": 0}),
        ("fedavg", {"strategy": "flwr:FedAvg"}),
    ):
        rows = run(digits_scenario | {"rounds": 3, "fusion": fusion}, tmp_path, name)
        accuracies[name] = [
            row["value"]
            for row in rows
            if (row["client"], row["split"], row["metric"]) == (None, "global", "accuracy")
        ]
    assert accuracies["feddf"] == pytest.approx(accuracies["fedavg"], abs=0.01)
    assert accuracies["fedavg"][-1] > 0.4


@pytest.mark.parametrize("strategy", ["fd", "fedproto"])
def test_what_acts_in_the_next_training_has_no_gain_when_it_arrives(strategy, digits_scenario, tmp_path):
    rows = run(digits_scenario | {"fusion": {"strategy": strategy}}, tmp_path, strategy)
    assert not [row for row in rows if row["metric"] in ("fusion_gain", "positive_flips", "agreement")]


def test_only_those_who_took_part_count_their_neighbours(digits_scenario, tmp_path):
    fusion = {"strategy": "knfu", "stale_decay": 0.5}
    tables = digits_scenario | {"rounds": 4, "clients_per_round": 2, "fusion": fusion}
    rows = run(tables, tmp_path, "stale")
    for round in range(1, 5):
        trained = {
            r["client"] for r in rows if (r["round"], r["split"], r["metric"]) == (round, "train", "loss")
        }
        counted = {r["client"] for r in rows if (r["round"], r["metric"]) == (round, "effective_neighbours")}
        assert len(trained) == 3 and counted == trained


def test_flipped_labels_are_flipped_in_distillation_too(digits_scenario):
    scenario = parse_scenario(digits_scenario | {"fusion": {"strategy": "knfu", "private_weight": 1.0}})
    data = load_federated_data(scenario)
    learned = []
    for poison in (None, Poison("flipped", np.ones(10))):
        client = LocalClients(scenario, data).build(0)
        client._faults = ClientFaults(poison)
        client.learn({"targets": np.full((60, 10), 0.1, dtype=np.float32)}, 1)
        learned.append(client.evaluate("local").accuracy)
    honest, poisoned = learned
    assert honest > poisoned + 0.2
