"""A server refuses malformed replies of a node."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from deployed_nodes import Deployed
from flwr.app import Context, Message, MetricRecord

from fedkd.errors import RunFailed
from fedkd.federation.apps.client_app import client_app
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record, record_to_arrays

pytestmark = pytest.mark.usefixtures("no_report")

MLP = [{"model": "mlp", "args": {"hidden": [12]}}]
STRATEGIES = {
    "knfu": {"clients": MLP},
    "fedproto": {"clients": MLP, "fusion": {"strategy": "fedproto"}},
    "lg_fedavg": {"clients": MLP, "fusion": {"strategy": "lg_fedavg"}},
    "flwr:FedAvg": {"clients": MLP, "fusion": {"strategy": "flwr:FedAvg"}},
}
Spoil = Callable[[Message], None]


def spoiling(spoil: Spoil, client: int = 1, round: int = 2, kind: str = msg.TRAIN):
    """Return the ClientApp, of which one client's reply in one round is spoiled."""

    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        asked = message.metadata.message_type, int(context.node_config["partition-id"])
        if asked == (kind, client) and message.content.config_records[msg.CONFIG][msg.SERVER_ROUND] == round:
            spoil(reply)
        return reply

    return app


def arrays(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    """Return what changes the first array of a reply that is no counter."""

    def spoil(reply: Message) -> None:
        sent = record_to_arrays(reply.content.array_records[msg.ARRAYS])
        name = next(name for name, values in sent.items() if values.dtype.kind == "f" and values.size > 1)
        reply.content[msg.ARRAYS] = arrays_to_record(sent | {name: change(np.array(sent[name]))})

    return spoil


def without_arrays(reply: Message) -> None:
    reply.content[msg.ARRAYS] = arrays_to_record({})


def metric(name: str, value: float) -> Spoil:
    def spoil(reply: Message) -> None:
        told = dict(reply.content.metric_records[msg.METRICS])
        reply.content[msg.METRICS] = MetricRecord({**told, name: value})

    return spoil


def without_metrics(reply: Message) -> None:
    del reply.content[msg.METRICS]


def as_client(client: int) -> Spoil:
    def spoil(reply: Message) -> None:
        reply.content[msg.IDENTITY] = msg.identity(client)

    return spoil


def with_number(value: float) -> Spoil:
    def change(values: np.ndarray) -> np.ndarray:
        values.flat[0] = value
        return values

    return arrays(change)


HOSTILE: dict[str, tuple[Spoil, str]] = {
    "another client": (as_client(0), r"it claims to be client 0"),
    "NaN": (with_number(np.nan), r"array \S+ has values that are not numbers"),
    "infinite": (with_number(-np.inf), r"array \S+ has values that are not numbers"),
    "huge": (with_number(3e38), r"array \S+ has 3e\+38, must be in -1e\+15 … 1e\+15"),
    "complex": (arrays(lambda values: values.astype(np.complex64)), r"array \S+ is of type complex64"),
    "another shape": (arrays(lambda values: values[None]), r"array \S+ has shape \[1, "),
    "transposed": (
        arrays(lambda values: values.T if values.ndim > 1 else values[1:]),
        r"array \S+ has shape ",
    ),
    "no arrays": (without_arrays, r"array \S+ is missing|the model has no array"),
    "negative samples": (metric(msg.NUM_EXAMPLES, -10), r"metric num-examples is -10, must be in 0 … "),
    "too many samples": (metric(msg.NUM_EXAMPLES, 2**62), r"metric num-examples is 4611686018427387904"),
    "infinite loss": (metric("train_loss", np.inf), r"metric train_loss is inf, must be finite"),
    "no metrics": (without_metrics, r"metric num-examples is missing"),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_malformed_reply_ends_the_run_in_one_line(dealt, tmp_path, strategy):
    found: Deployed = dealt(**STRATEGIES[strategy])
    for what, (spoil, reason) in HOSTILE.items():
        with pytest.raises(RunFailed, match=f"^client 1, round 1: reply refused: ({reason})") as refused:
            found.run(tmp_path / what, app=spoiling(spoil, round=1))
        assert "\n" not in str(refused.value), what
        assert refused.value.diverged == (what in ("NaN", "infinite"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_dropped_reply_is_counted_and_has_no_effect(dealt, tmp_path, strategy, capfd):
    """Whatever is wrong with it: the bytes are the same, and so they are of a client that did not fit."""
    found: Deployed = dealt(**STRATEGIES[strategy], faults={"on_bad_upload": "drop"})
    runs = {
        what: found.run(tmp_path / what, app=spoiling(HOSTILE[what][0]))
        for what in ("another client", "NaN", "another shape", "negative samples")
    }
    assert len(set(runs.values())) == 1
    rows = [json.loads(line) for line in runs["NaN"].splitlines()]
    refused = [(row["round"], row["client"], row["split"], row["value"]) for row in rows if is_count(row)]
    assert refused == [(2, 1, "train", 1), (2, None, "train", 1)]
    losses = {
        (row["round"], row["client"]) for row in rows if (row["split"], row["metric"]) == ("train", "loss")
    }
    assert (2, 1) not in losses and {(2, 0), (2, 2), (1, 1)} <= losses
    evaluated = {row["client"] for row in rows if row["round"] == 2 and row["metric"] == "accuracy"}
    assert 1 in evaluated, "it is evaluated all the same"
    told = capfd.readouterr().out
    assert told.count("client 1, round 2: reply refused: ") == len(runs)


def is_count(row: dict) -> bool:
    return row["metric"] == "refused"


def test_a_refused_evaluation_is_left_out(dealt, tmp_path):
    found: Deployed = dealt(faults={"on_bad_upload": "drop"})
    for what, spoil in {"figure": metric("accuracy_local", 7.0), "keys": without_metrics}.items():
        lines = found.run(tmp_path / what, app=spoiling(spoil, kind=msg.EVALUATE)).splitlines()
        rows = [json.loads(line) for line in lines]
        assert [(row["client"], row["split"]) for row in rows if is_count(row)] == [
            (1, "local"),
            (None, "local"),
        ]
        assert (2, 1) not in {(r["round"], r["client"]) for r in rows if r["metric"] == "accuracy"}


def test_too_few_valid_replies_end_the_run(dealt, tmp_path):
    found: Deployed = dealt(faults={"on_bad_upload": "drop", "min_replies": 3})
    with pytest.raises(
        RunFailed, match=r"^round 2: 2 of 3 replies .* faults\.min_replies = 3; client 1: array"
    ):
        found.run(tmp_path / "run", app=spoiling(HOSTILE["NaN"][0]))


def test_a_client_is_reported_once(dealt, tmp_path, capfd):
    found: Deployed = dealt(faults={"on_bad_upload": "drop"})

    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == msg.TRAIN and context.node_config["partition-id"] == 2:
            HOSTILE["NaN"][0](reply)
        return reply

    rows = [json.loads(line) for line in found.run(tmp_path / "run", app=app).splitlines()]
    assert [(row["round"], row["value"]) for row in rows if is_count(row) and row["client"] == 2] == [
        (1, 1),
        (2, 1),
    ]
    assert capfd.readouterr().out.count("client 2, round ") == 1
