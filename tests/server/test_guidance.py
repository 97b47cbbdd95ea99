"""Results of strategies are checked and applied."""

from __future__ import annotations

import numpy as np
import pytest
import tomli_w

import fedkd
from fedkd.clients.factory import ClientFactory
from fedkd.clients.poison import Poison
from fedkd.data.federated import load_federated_data
from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.plan.load import load_scenario, parse_plan
from fedkd.server.guidance import check_guidance, tables_of

pytestmark = pytest.mark.usefixtures("no_report")


def knowledge(clients: int = 2) -> Knowledge:
    logits = np.zeros((clients, 3, 4), dtype=np.float32)
    return Knowledge(tuple(range(clients)), logits, np.ones(clients, dtype=np.int64))


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(targets=None, shared={"label_logits": np.array([0.0, np.nan])}),
        Guidance(targets=None, personal=[{"parameters": np.zeros(2)}, {"parameters": np.array([np.nan, 0])}]),
        Guidance(targets=None, absent={4: {"parameters": np.array([np.nan, 0])}}),
        Guidance(targets=None, for_absent={"parameters": np.array([np.nan, 0])}),
    ],
)
def test_guidance_without_targets_is_checked_for_nan_too(guidance):
    with pytest.raises(ValueError, match="contain NaN"):
        check_guidance(guidance, knowledge())


WRONG = {
    "targets of text": (Guidance("text"), "targets are a str; must be a NumPy array of floats"),
    "targets of integers": (Guidance(np.zeros((3, 4), dtype=int)), "targets are an array of int64"),
    "weights of another size": (
        Guidance(None, weights=np.ones((3, 2))),
        r"weights have shape \[3, 2\]; must",
    ),
    "memory of text": (Guidance(None, memory="text"), "memory is a str; must be a dict of NumPy arrays"),
    "shared lists": (Guidance(None, shared={"a": [1.0]}), "has a of type list; must be a NumPy array"),
    "shared words": (Guidance(None, shared={"a": np.array(["x"])}), "has a of type <U1; must be"),
    "no names": (Guidance(None, shared={0: np.ones(1)}), "has a key 0; must be a name"),
    "too few personal": (
        Guidance(None, personal=[{}]),
        "personal must be a list of 2 tables, one for each client",
    ),
    "a personal array": (Guidance(None, personal=[np.ones(2)] * 2), "is a ndarray; must be a dict"),
    "absent lists": (Guidance(None, absent=[{}]), "absent is a list; must be a dict of tables by client"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_return_values_of_a_strategy_are_named(name):
    guidance, words = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=words):
        check_guidance(guidance, knowledge())


def test_clients_with_one_student_share_its_arrays():
    student, other = {"parameters": np.ones(2)}, {"parameters": np.zeros(2)}
    guidance = Guidance(None, personal=[student, other, student], absent={7: other, 5: student})
    tables, for_others = tables_of(guidance, knowledge(3))
    assert list(tables) == [0, 1, 2, 7, 5] and not for_others
    assert tables[0] is tables[2] is tables[5] and tables[1] is tables[7] is not tables[0]


def test_absent_clients_receive_shared_guidance_only():
    targets = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    shared, own = {"scale": np.ones(1)}, {"parameters": np.zeros(2)}
    tables, for_others = tables_of(Guidance(targets, shared=shared, absent={4: own}), knowledge())
    assert list(tables[4]) == ["scale", "parameters"] and not for_others
    assert [list(tables[n]) for n in range(2)] == [["scale", "targets"]] * 2
    for n in range(2):
        assert np.array_equal(tables[n]["targets"], targets[n])
    common, for_others = tables_of(Guidance(targets[0], absent={4: own}), knowledge())
    assert common[0] is common[1] is for_others and set(common[4]) == {"parameters", "targets"}


def test_targets_in_double_precision_are_sent_in_single_precision():
    for targets in (np.full((3, 4), 0.25), np.full((2, 3, 4), 0.25)):
        tables, _ = tables_of(Guidance(targets), knowledge())
        assert {table["targets"].dtype for table in tables.values()} == {np.dtype(np.float32)}
    half = np.full((3, 4), 0.25, np.float16)
    assert tables_of(Guidance(half), knowledge())[0][0]["targets"] is half


def test_guidance_without_personal_parts_is_for_all_clients():
    targets = np.zeros((3, 4), dtype=np.float32)
    for guidance in (Guidance(targets), Guidance(None, shared={"scale": np.ones(1)})):
        tables, for_others = tables_of(guidance, knowledge())
        assert for_others and tables[0] is tables[1] is for_others
    personal = Guidance(None, shared={"scale": np.ones(1)}, personal=[{"own": np.ones(1)}] * 2)
    assert not tables_of(personal, knowledge())[1]
    meant = Guidance(
        targets, personal=personal.personal, shared=personal.shared, for_absent={"a": np.ones(1)}
    )
    assert set(tables_of(meant, knowledge())[1]) == {"scale", "targets", "a"}


def test_targets_of_some_samples_have_indices():
    logits = np.zeros((2, 3, 4), dtype=np.float32)
    some = Knowledge((0, 1), logits, np.ones(2, dtype=np.int64), request=np.array([1, 4, 6]))
    tables, for_others = tables_of(Guidance(logits[0]), some)
    assert for_others["samples"].tolist() == tables[1]["samples"].tolist() == [1, 4, 6]


def test_participants_are_not_absent():
    with pytest.raises(ValueError, match="has client 1, which took part"):
        check_guidance(Guidance(None, absent={3: {}, 1: {}}), knowledge())


def run(tables: dict, tmp_path, name: str) -> list:
    path = tmp_path / f"{name}.toml"
    path.write_text(tomli_w.dumps(tables))
    return fedkd.run(load_scenario(path), out=tmp_path / name).metrics()


@pytest.mark.parametrize("strategy", ["fd", "fedproto"])
def test_guidance_for_the_next_training_gains_nothing_on_arrival(strategy, digits_scenario, tmp_path):
    rows = run(digits_scenario | {"fusion": {"strategy": strategy}}, tmp_path, strategy)
    assert not [row for row in rows if row["metric"] in ("positive_flips", "agreement")]
    gains = [row["value"] for row in rows if row["metric"] == "fusion_gain"]
    assert len(gains) == 2 * 2 * 5 and not any(gains)


def test_only_participants_count_their_neighbours(digits_scenario, tmp_path):
    fusion = {"strategy": "knfu", "stale_decay": 0.5}
    tables = digits_scenario | {"rounds": 4, "clients_per_round": 2, "fusion": fusion}
    rows = run(tables, tmp_path, "stale")
    for round in range(1, 5):
        trained = {
            r["client"] for r in rows if (r["round"], r["split"], r["metric"]) == (round, "train", "loss")
        }
        counted = {r["client"] for r in rows if (r["round"], r["metric"]) == (round, "effective_neighbours")}
        assert len(trained) == 3 and counted == trained


def test_flipped_labels_apply_in_distillation(digits_scenario):
    plan = parse_plan(digits_scenario | {"fusion": {"strategy": "knfu", "ce_weight": 1.0}})
    data = load_federated_data(plan.scenario)
    learned = []
    for poison in (None, Poison("flipped", np.ones(10))):
        client = ClientFactory(plan, data).build(0)
        client.samples._poison = poison
        client.complete(client.learn({"targets": np.full((60, 10), 0.1, dtype=np.float32)}, 1))
        learned.append(client.evaluator.evaluate("local").accuracy)
    honest, poisoned = learned
    assert honest > poisoned + 0.2
