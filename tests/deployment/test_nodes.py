"""Nodes with one client each equal the simulation and send knowledge only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from deployed_nodes import Deployed, node_context
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from safetensors.numpy import load_file

import fedkd
from fedkd.errors import RunFailed, UserError
from fedkd.federation.apps.client_app import client_app
from fedkd.federation.apps.context import load_participant
from fedkd.federation.compat import RUN_ID, assume_identity, node_id_of
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record, record_to_arrays
from fedkd.federation.messages.node_gate import check_leaving
from fedkd.federation.messages.records import first_line

pytestmark = pytest.mark.usefixtures("no_report")

STREAM = {
    "rounds": None,
    "clients": [{"model": "mlp", "args": {"hidden": [12]}}],
    "continual": {"learner": "ewc", "rounds_per_task": 1, "tasks": {"kind": "permuted", "count": 2}},
}
KINDS = {
    "knfu": {"clients_per_round": 2, "fusion": {"strategy": "knfu", "stale_decay": 0.5}},
    "averaged": {"clients": [{"model": "lenet"}], "fusion": {"strategy": "flwr:FedAdam", "eta": 0.01}},
    "streamed": STREAM,
}
App = Callable[[Message, Context], Message]


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_equal_the_simulation_byte_for_byte(dealt, simulated, tmp_path, kind):
    found = dealt(**KINDS[kind])
    assert found.run(tmp_path / "deployed") == simulated(found)


def listening(heard: list[tuple[Message, Message]]) -> App:
    """Return the ClientApp, whose messages and replies are kept."""

    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        heard.append((message, reply))
        return reply

    return app


def test_nodes_send_logits_and_metrics_only(dealt, tmp_path):
    heard: list[tuple[Message, Message]] = []
    found = dealt()
    found.run(tmp_path / "run", app=listening(heard))
    kinds = {message.metadata.message_type for message, _ in heard}
    assert kinds == {msg.IDENTIFY, msg.TRAIN, msg.EVALUATE}, "and nobody asks for a state"
    for message, reply in heard:
        arrays = {
            (record, name): values
            for record, found_arrays in reply.content.array_records.items()
            for name, values in record_to_arrays(found_arrays).items()
        }
        if message.metadata.message_type == msg.TRAIN:
            assert {key: (a.dtype, a.shape) for key, a in arrays.items()} == {
                ("arrays", "logits"): (np.float32, (20, 10))
            }
        else:
            assert not arrays
        told = set(reply.content.config_records) | set(reply.content.metric_records)
        assert told <= {msg.IDENTITY, msg.METRICS, msg.CURVES, msg.AT_CHANCE, msg.LEARNER}
    folder = tmp_path / "run"
    assert not (folder / "checkpoints").exists()
    assert json.loads((folder / "clients.json").read_text())["tasks"] == [], "nor what labels there are"


def test_learned_models_stay_with_their_owner(dealt, tmp_path):
    found = dealt()
    with pytest.raises(UserError, match="has no trained client: its client has not joined a run yet"):
        fedkd.load_client(
            shutil.copytree(found.of_client(0), tmp_path / "new", ignore=lambda *_: ["runs"]), 0
        )
    found.run(tmp_path / "run")
    out = fedkd.run(found.plan, out=tmp_path / "simulated", progress=False, report=False).folder
    for client in range(found.clients):
        own, theirs = fedkd.load_client(found.of_client(client), client), fedkd.load_client(out, client)
        x = np.random.default_rng(client).uniform(0, 16, (9, 1, 8, 8)).astype(np.float32)
        assert own.logits(x).tobytes() == theirs.logits(x).tobytes()
        assert (own.round, own.classes) == (theirs.round, theirs.classes)
    with pytest.raises(UserError, match="no client 1; the node is client 0"):
        fedkd.load_client(found.of_client(0), 1)


def test_the_server_stores_the_averaged_weights(dealt, tmp_path):
    found = dealt(**KINDS["averaged"])
    found.run(tmp_path / "run")
    kept = load_file(tmp_path / "run" / "server.safetensors")
    assert any(array.ndim == 4 for array in kept.values()), "a network's weights"
    with pytest.raises(UserError, match="has no trained client: its model is the server's"):
        fedkd.load_client(found.of_client(0), 0)


@pytest.mark.parametrize("kind", [msg.EXPORT_STATE, msg.IMPORT_STATE])
def test_a_node_keeps_its_state_private(dealt, kind):
    assume_identity()
    found = dealt()
    message = Message(RecordDict({msg.STATE: ArrayRecord()}), node_id_of(0), kind)
    with pytest.raises(UserError, match="a deployed client never sends its state"):
        client_app(message, node_context(found.of_client(0), 0))


def test_unexchanged_knowledge_does_not_leave(dealt):
    plan = dealt().plan
    logits = arrays_to_record({"logits": np.zeros((20, 10), np.float32)})
    check_leaving(plan, msg.TRAIN, RecordDict({msg.ARRAYS: logits, msg.IDENTITY: msg.identity(0)}))
    with pytest.raises(UserError, match=r"record 'state' must not leave the node"):
        check_leaving(plan, msg.TRAIN, RecordDict({msg.STATE: logits}))
    with pytest.raises(UserError, match="'knfu' exchanges no arrays in reply to 'evaluate': logits"):
        check_leaving(plan, msg.EVALUATE, RecordDict({msg.ARRAYS: logits}))
    with pytest.raises(UserError, match=r"'knfu' exchanges no array 'head\.weight'"):
        check_leaving(
            plan, msg.TRAIN, RecordDict({msg.ARRAYS: arrays_to_record({"head.weight": np.zeros(3)})})
        )
    with pytest.raises(UserError, match=r"'knfu' exchanges no arrays in reply to 'query\.end_task'"):
        check_leaving(plan, msg.END_TASK, RecordDict({msg.ARRAYS: logits}))


def test_a_restarted_node_continues(dealt, simulated, tmp_path):
    """A context of Flower's is in the memory of its SuperNode; what the client has learned is on the disk."""
    found = dealt()

    def forgetful(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        return client_app(message, node_context(found.of_client(client), client, context.run_id))

    assert found.run(tmp_path / "run", app=forgetful) == simulated(found)


def test_a_lost_reply_is_sent_again(dealt, simulated, tmp_path):
    """The client has trained already: asked once more, it answers from what it was before, to the bit."""
    faults = {"on_client_error": "retry"}
    found = dealt(faults=faults)
    lost: set[tuple] = set()

    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        key = (message.metadata.message_type, message.metadata.dst_node_id, message.metadata.group_id)
        if message.metadata.message_type != msg.IDENTIFY and key not in lost:
            lost.add(key)
            return Message(Error(code=msg.CLIENT_DIED, reason="Error: Node Unavailable"), reply_to=message)
        return reply

    once_more = without_failures(found.run(tmp_path / "run", app=app))
    assert len(lost) == 12
    assert once_more == without_failures(simulated(found))


def without_failures(metrics: bytes) -> list[bytes]:
    return [line for line in metrics.splitlines() if b'"failed"' not in line]


def test_a_lost_node_ends_the_run_and_is_named(dealt, tmp_path):
    found = dealt()

    def app(message: Message, context: Context) -> Message:
        if message.metadata.group_id == "2" and message.metadata.dst_node_id == node_id_of(1):
            return answered_by_the_superlink(message)
        return client_app(message, context)

    with pytest.raises(RunFailed) as failure:
        found.run(tmp_path / "run", app=app)
    assert str(failure.value) == "client 1, round 2: Node Unavailable — no heartbeat"
    with pytest.raises(UserError, match="deployed nodes ran it"):
        fedkd.resume(tmp_path / "run", progress=False)


def answered_by_the_superlink(message: Message) -> Message:
    """Return what a SuperLink sends in its own name when a node's heartbeat has stopped."""
    reason = "Error: Node Unavailable — no heartbeat"
    reply = Message(Error(code=msg.CLIENT_DIED, reason=reason), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = 1
    return reply


def test_a_run_may_continue_without_a_lost_node(dealt, tmp_path):
    found = dealt(faults={"on_client_error": "skip"})

    def app(message: Message, context: Context) -> Message:
        if message.metadata.group_id == "1" and message.metadata.dst_node_id == node_id_of(1):
            return answered_by_the_superlink(message)
        return client_app(message, context)

    rows = [json.loads(line) for line in found.run(tmp_path / "run", app=app).splitlines()]
    failed = [(row["round"], row["client"]) for row in rows if row["metric"] == "failed"]
    assert set(failed) == {(1, 1), (1, None)}
    assert {row["client"] for row in rows if row["round"] == 2} == {0, 1, 2, None}, "it is back"


# Who comes ------------------------------------------------------------------------------------------------


def contexts(found: Deployed, changed: Mapping[int, Context]) -> dict[int, Context]:
    return found.contexts() | dict(changed)


def test_a_node_with_another_clients_samples_is_refused(dealt, tmp_path):
    found = dealt()
    wrong = node_context(found.of_client(2), 1)
    with pytest.raises(UserError) as refused:
        found.run(tmp_path / "run", contexts(found, {1: wrong}))
    assert str(refused.value) == (
        f"node-config: this node is client 1, but {found.of_client(2)} has the samples of client 2"
    )
    assert not (tmp_path / "run").exists(), "nothing has begun"


def test_two_nodes_for_one_client_are_refused(dealt, tmp_path):
    found = dealt()
    twice = node_context(found.of_client(0), 0)
    with pytest.raises(UserError, match=r"data.clients: 2 nodes claim to be client 0: 2 and 4$"):
        found.run(tmp_path / "run", contexts(found, {2: twice}))


def test_missing_nodes_are_named(dealt, tmp_path):
    found = dealt()
    with pytest.raises(UserError) as refused:
        found.run(tmp_path / "run", {0: found.contexts()[1]})
    assert str(refused.value) == (
        "data.clients: the federation has 1 nodes for 3 clients after 0.1 s; missing: clients 0, 2"
    )


def test_a_node_of_another_federation_is_refused(dealt, tmp_path):
    found, other = dealt(), dealt(seed=6)
    stranger = node_context(other.of_client(1), 1)
    with pytest.raises(UserError, match="client 1 is in another federation: its scenario, classes"):
        found.run(tmp_path / "run", contexts(found, {1: stranger}))


def test_a_share_folder_may_lie_anywhere(dealt, tmp_path):
    """Where files lie is the business of each machine."""
    own = dealt().of_client(1)
    elsewhere = shutil.copytree(own, tmp_path / "elsewhere")
    scenario = elsewhere / "scenario.toml"
    scenario.write_text(scenario.read_text().replace("[data]", '[data]\nroot = "/srv"'))
    assert load_participant(str(elsewhere)).federation == load_participant(str(own)).federation
    scenario.write_text(scenario.read_text().replace("seed = 5", "seed = 6"))
    assert (
        load_participant(str(shutil.move(elsewhere, tmp_path / "other"))).federation
        != load_participant(str(own)).federation
    )


def test_a_simulation_node_is_refused_in_a_deployment(dealt, tmp_path):
    found = dealt()
    bare = Context(RUN_ID, node_id_of(1), {"partition-id": 1}, RecordDict(), {})
    with pytest.raises(RunFailed, match=r"client 1: has no share of the data \(node-config: data\)"):
        found.run(tmp_path / "run", contexts(found, {1: bare}))


def test_the_server_needs_its_own_folder(dealt, tmp_path):
    found = dealt()
    with pytest.raises(UserError, match=r"run-config\.data: .* has the samples of client 0"):
        found.run(tmp_path / "run", data=str(found.of_client(0)))
    with pytest.raises(UserError, match=r"run-config\.wait: must be a number of seconds, got -1"):
        found.run(tmp_path / "run", wait=-1)


def test_flower_error_texts_are_understood():
    assume_identity()
    reason = "<class 'fedkd.errors.UserError'>:<'node-config: this is\nnot it'>"
    sent = Message(RecordDict({msg.CONFIG: ConfigRecord()}), 2, msg.TRAIN)
    reply = Message(Error(code=2, reason=reason), reply_to=sent)
    assert first_line(reply) == "UserError: node-config: this is"
