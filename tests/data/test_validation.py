"""`data.validation` replaces test samples by held-out training samples."""

from __future__ import annotations

import numpy as np
import pytest

import fedkd
from fedkd.data.federated import load_federated_data
from fedkd.data.load import load_data
from fedkd.data.partitions.stratified import held_out_split
from fedkd.errors import UserError
from fedkd.plan.load import parse_plan
from fedkd.plan.plan import resolve_plan
from fedkd.report.page.record import read_record
from fedkd.report.page.run import run_page
from fedkd.scenario.identity import result_relevant_keys, scenario_digest
from fedkd.scenario.schema import Scenario
from fedkd.simulation.scenario_check import check_plan
from fedkd.trained.card import _tests

pytestmark = pytest.mark.usefixtures("read_once", "no_report")


def both(scenario, **data):
    return tuple(
        load_federated_data(scenario(clients=4, transfer={"size": 50}, **data, **more))
        for more in ({}, {"validation": 0.25})
    )


def test_validation_comes_from_training_samples(scenario):
    usual, held_out = both(scenario)
    for client in range(4):
        train, (start, stop) = slice(*usual.train_bounds[client]), held_out.train_bounds[client]
        first, last = held_out.test_bounds[client]
        own = held_out.source_index[start:last]
        assert first == stop and sorted(own) == sorted(usual.source_index[train])
        assert last - first == round(0.25 * (last - start))
        tested = set(usual.source_index[slice(*usual.test_bounds[client])])
        assert tested.isdisjoint(held_out.source_index)
    assert len(usual.transfer_x) and np.array_equal(usual.transfer_x, held_out.transfer_x)


def test_the_common_validation_set_joins_all_clients_holdouts(scenario):
    _, held_out = both(scenario)
    own = [held_out.client(n) for n in range(4)]
    assert np.array_equal(held_out.test_x, np.concatenate([data.test_x for data in own]))
    assert np.array_equal(held_out.test_y, np.concatenate([data.test_y for data in own]))


def test_validation_works_without_local_test_sets(scenario):
    usual, held_out = both(scenario, test_fraction=0.0)
    assert not any(len(usual.client(n).test_y) for n in range(4))
    assert all(len(held_out.client(n).test_y) for n in range(4))


def test_client_skew_holds_in_validation_too(scenario):
    tables = scenario(clients=2, transfer={"size": 50}, validation=0.5).model_dump()
    tables["heterogeneity"] = {"label_noise": 0.9, "noise": 1.0}
    data = load_federated_data(Scenario.model_validate(tables))
    true = {index: label for index, label in zip(_held(data), data.test_y, strict=True)}
    wrong = [
        np.mean([true[i] != y for i, y in zip(_index(data, n), data.client(n).test_y, strict=True)])
        for n in range(2)
    ]
    assert max(wrong) > 0.1, "labels that are held out are as wrong as those that are trained on"
    assert not np.array_equal(data.test_x, np.concatenate([data.client(n).test_x for n in range(2)]))


def _index(data, client):
    return data.source_index[slice(*data.test_bounds[client])]


def _held(data):
    return np.concatenate([_index(data, n) for n in range(data.num_clients)])


def test_a_single_sample_is_trained_on():
    kept, held = held_out_split(np.array([3]), 0.5, seed=1, client=0)
    assert (kept.tolist(), held.tolist()) == ([0], [])
    kept, held = held_out_split(np.array([3, 3]), 0.01, seed=1, client=0)
    assert (len(kept), len(held)) == (1, 1)


def test_each_task_holds_out_its_own_validation_samples(digits_scenario):
    tables = digits_scenario | {"continual": {"tasks": {"count": 2}}}
    del tables["rounds"]
    tables["data"] = tables["data"] | {"validation": 0.3}
    for task in load_data(parse_plan(tables).scenario):
        held = sum(len(task.data.client(n).test_y) for n in range(4))
        assert held == len(task.data.test_y) > 0


def test_a_run_states_that_accuracies_are_on_validation_samples(digits_scenario, tmp_path, capsys):
    tables = digits_scenario | {"rounds": 1, "fusion": {"strategy": "fedmd"}}
    tables["data"] = tables["data"] | {"validation": 0.2}
    result = fedkd.run(tables, out=tmp_path / "run")
    assert result.summary["tested_on"] == "validation"
    assert result.summary["final"]["accuracy_local"] is not None
    assert "accuracies are measured on held-out training samples" in capsys.readouterr().out
    assert "on validation samples" in run_page(read_record(result.folder)).notes[0]
    assert "test samples were not looked at" in _tests(parse_plan(tables).scenario)
    assert "held out by the clients" in "\n".join(check_plan(parse_plan(tables)))


def test_a_scenario_without_validation_is_unchanged(digits_scenario):
    scenario = parse_plan(digits_scenario).scenario
    assert "validation" not in result_relevant_keys(scenario)["data"]
    held_out = scenario.data.model_copy(update={"validation": 0.2})
    assert scenario_digest(scenario) != scenario_digest(scenario.model_copy(update={"data": held_out}))


def test_validation_refuses_clients_that_share_samples(scenario):
    partition = {"scheme": "iid", "replacement": True, "samples_per_client": 30}
    with pytest.raises(UserError, match="train on samples that others hold out") as caught:
        resolve_plan(scenario(partition=partition, validation=0.2))
    assert caught.value.key == "data.validation"
