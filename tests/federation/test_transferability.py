"""Transferability maps in whole runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from conftest import digits_tables
from flwr.app import Message, RecordDict
from numpy.testing import assert_allclose
from stopping import StopInRound

import fedkd
from fedkd.cli.main import main
from fedkd.errors import Interrupted, UserError
from fedkd.federation.compat import assume_identity
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record
from fedkd.federation.transferability import TransferProbe
from fedkd.plan.load import load_scenario, parse_plan
from fedkd.scenario.schema import Transferability
from fedkd.simulation.scenario_check import check_plan
from fedkd.storage.digests import list_table_rounds
from fedkd.tracking import read_transfer_map
from fedkd.tracking.events import RunReport
from fedkd.tracking.wording import closing_lines

pytestmark = pytest.mark.usefixtures("no_report")

MEASURED = ("transfer_gain", "transfer_rate", "hit_", "rank_")
MEASURE = {"measure": {"transferability": {"rounds": [2, 3]}}}


def scenario(folder: Path, tables: dict[str, Any], **changes: Any):
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps(tables | {"rounds": 3, "clients_per_round": 3} | changes))
    return load_scenario(path)


def lines(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.fixture
def small(digits_scenario) -> dict[str, Any]:
    data = digits_scenario["data"] | {"test_size": 100, "transfer": {"source": "holdout", "size": 40}}
    data["partition"] = data["partition"] | {"samples_per_client": 50}
    clients = [{"model": "mlp", "args": {"hidden": [16], "dropout": 0.2}}, {"model": "mlp"}]
    return digits_scenario | {"data": data, "clients": clients}


def test_maps_change_no_result_and_resume_exactly(small, tmp_path):
    fedkd.run(scenario(tmp_path, small), out=tmp_path / "without")
    wanted = scenario(tmp_path, small | MEASURE)
    result = fedkd.run(wanted, out=tmp_path / "with")
    rest = [line for line in lines(tmp_path / "with") if not json.loads(line)["metric"].startswith(MEASURED)]
    assert rest == lines(tmp_path / "without") and len(rest) < len(lines(tmp_path / "with"))
    sent = [fedkd.RunResult(tmp_path / name, {}) for name in ("with", "without")]
    finals = [json.loads((run.folder / "summary.json").read_text())["final"] for run in sent]
    assert finals[0]["evaluation_bytes"] > finals[1]["evaluation_bytes"]
    assert finals[0] | {"evaluation_bytes": 0} == finals[1] | {"evaluation_bytes": 0}

    with pytest.raises(Interrupted):
        fedkd.run(wanted, out=tmp_path / "stopped", observers=[StopInRound(2)])
    fedkd.resume(tmp_path / "stopped")
    assert lines(tmp_path / "stopped") == lines(tmp_path / "with")
    assert list_table_rounds(tmp_path / "with" / "transferability", "round") == [2, 3]
    for round in (2, 3):
        name = Path("transferability") / f"round-{round:05d}.npz"
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "with" / name).read_bytes()

    found = read_transfer_map(result.folder, 3)
    assert found is not None and len(found.clients) == 3
    assert found.complement_by_class is not None and found.complement_by_class.shape == (3, 3, 10)
    told = result.summary["transferability"]
    rows = [row for row in result.metrics() if row["round"] == 3 and row["metric"] == "rank_shift"]
    ranks = [row["value"] for row in rows if row["client"] is not None and row["split"] == "global"]
    assert told["round"] == 3
    assert told["global"]["predictors"]["shift"]["rank"] == pytest.approx(np.mean(ranks))
    (line,) = [line for line in closing_lines(RunReport(result.folder, result.summary)) if "Spearman" in line]
    best = max(told["global"]["predictors"].items(), key=lambda item: item[1]["rank"])
    assert line.startswith(f"transferability  round 3: best predictor of global gains is '{best[0]}'")
    assert "transferability" not in json.loads((tmp_path / "without" / "summary.json").read_text())


def test_a_single_client_has_a_map_without_ranking(small, tmp_path):
    one = {"data": small["data"] | {"clients": 1}, "clients": small["clients"][:1]}
    changes = {"clients_per_round": 1, "rounds": 1} | one
    alone = scenario(tmp_path, small, **changes, measure={"transferability": {"rounds": [1]}})
    result = fedkd.run(alone, out=tmp_path / "alone")
    found = read_transfer_map(result.folder, 1)
    assert found is not None and found.gain_global.shape == (1, 1)
    assert not [row for row in result.metrics() if row["metric"].startswith(MEASURED)]
    assert "transferability" not in result.summary


def test_unlabelled_transfer_sets_give_maps_without_labels(small, tmp_path):
    data = small["data"] | {"transfer": {"source": "noise", "size": 40}}
    result = fedkd.run(scenario(tmp_path, small, data=data, rounds=2, **MEASURE), out=tmp_path / "noise")
    found = read_transfer_map(result.folder, 2)
    assert found is not None and found.transfer_rate is None and found.complement_by_class is None
    assert found.predicted.keys() == {"distance", "agreement", "surer", "shift"}


def test_check_states_the_cost_of_the_map(small):
    told = "\n".join(check_plan(parse_plan(small | MEASURE)))
    assert "transferability in round 2: 16 distillations of 40 samples each" in told
    # Of each client predictions (10 × 4 bytes) and 4 answers (4 bytes) of 40 samples; to it all predictions.
    assert "9.0 kB up, 25.6 kB down each time" in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fusion": {"strategy": "centralized"}}, "clients have no personalised models"),
        (
            {"fusion": {"strategy": "knfu", "filters": [{"by": "confidence", "at": "upload"}]}},
            "needs all predictions",
        ),
        (
            {"fusion": {"strategy": "flwr:FedAvg"}, "clients": [{"model": "mlp"}]},
            "clients keep no model between messages",
        ),
        ({"clients": [{"model": "random-forest"}], "training": {}}, "'random-forest' is not a network"),
        (
            {
                "fusion": {"strategy": "local"},
                "data": {"dataset": "digits", "clients": 4, "transfer": {"size": 0}},
            },
            "needs transfer samples",
        ),
        (
            {"continual": {"tasks": {"kind": "split", "count": 2}}, "rounds": 2},
            "not allowed in a stream of tasks",
        ),
    ],
)
def test_unmeasurable_transferability_is_refused(small, changes, told):
    with pytest.raises(UserError, match=told) as raised:
        list(check_plan(parse_plan(small | MEASURE | changes)))
    assert raised.value.key == "measure.transferability"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (
            "{rounds=[3]}",
            "measure.transferability.rounds: must begin with one of the run's 2 rounds",
        ),
        ("{rounds=[2,2]}", "measure.transferability.rounds: must be ascending without repeats, got [2, 2]"),
        ("{rounds=[]}", "measure.transferability.rounds: must have at least 1"),
        ("{rounds=[1],epochs=0}", "measure.transferability.epochs: must be ≥ 1, got 0"),
        ("{round=1}", "measure.transferability.round: unknown key; did you mean 'rounds'?"),
    ],
)
def test_wrong_tables_are_refused_in_one_line(digits_toml, capsys, table, told):
    assert main(["check", str(digits_toml), "--set", f"measure.transferability={table}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {digits_toml}: {told}")


class Answers:
    """Clients that answer what is worked out here; some are lost as they show, others as they learn."""

    def __init__(self, lost: set[int], lost_later: set[int]) -> None:
        self._lost = {msg.SHOW: lost, msg.TRY_OUT: lost_later}

    def __call__(self, messages: Sequence[Message]) -> dict[int, Message]:
        replies = {}
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            client = node - 100
            if client in self._lost[kind]:
                continue
            if kind == msg.SHOW:  # everybody says its own class of every sample
                arrays = {"logits": 5 * np.eye(4, dtype=np.float32)[[client] * 3], "start": np.full(4, 0.25)}
            else:
                told = message.content.array_records[msg.ARRAYS][msg.PROBABILITIES].numpy()
                senders = told[:, 0].argmax(axis=1)
                gains = np.stack([client + senders / 10, -client - senders / 10], axis=1)
                answers = np.repeat(senders[:, None], 3, axis=1).astype(np.int32)
                arrays = {msg.GAINS: gains, msg.ANSWERS: answers}
            replies[client] = Message(RecordDict({msg.ARRAYS: arrays_to_record(arrays)}), reply_to=message)
        return replies


def measured(lost: set[int], lost_later: set[int], labels=None):
    assume_identity()
    probe = TransferProbe(parse_plan(digits_tables()).scenario, Transferability(), labels)
    return probe.measure(1, {client: 100 + client for client in range(4)}, Answers(lost, lost_later))


def test_only_lost_clients_have_nan_in_the_map():
    found, _ = measured({1}, {2}, np.array([0, 3, 3]))
    assert found is not None and found.clients == (0, 2, 3)
    expected = [[0, 0.2, 0.3], [np.nan] * 3, [3, 3.2, 3.3]]
    assert_allclose(found.gain_local, expected)
    assert_allclose(found.gain_global, np.negative(expected))
    assert_allclose(found.predicted["complement"], [[0, 0, 2 / 3], [1 / 3, 0, 2 / 3], [1 / 3, 0, 0]])
    assert_allclose(found.transfer_rate, [[np.nan, np.nan, 1], [np.nan] * 3, [1, np.nan, np.nan]])
    assert measured({0, 1, 2, 3}, set()) == (None, 0)
