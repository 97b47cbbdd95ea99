"""A node accepts only valid messages of its own plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from deployed_nodes import SMALL, Deployed, node_context
from flwr.app import ConfigRecord, Message, RecordDict
from safetensors.numpy import load_file

from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.data.shares.share import share_of_client
from fedkd.errors import UserError
from fedkd.federation.apps.client_app import client_app
from fedkd.federation.apps.context import Participant
from fedkd.federation.compat import assume_identity, node_id_of
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record
from fedkd.federation.messages.node_gate import check_message, kinds_accepted, records_accepted
from fedkd.fusion.auxiliary import aux_networks_of
from fedkd.fusion.forms import InvalidUpload
from fedkd.fusion.registry import STRATEGIES, make_strategy
from fedkd.plan.load import parse_plan

pytestmark = pytest.mark.usefixtures("no_report")

MLP = [{"model": "mlp", "args": {"hidden": [12]}}]
KINDS = (msg.TRAIN, msg.EVALUATE, msg.END_TASK, msg.FINISH, msg.SHOW, msg.TRY_OUT, msg.EXPORT_STATE)
RECORDS = (msg.ARRAYS, msg.GUIDANCE, msg.MISSED, msg.REQUEST, msg.BASES, msg.STATE, f"{msg.OLD}0")
NAMES = sorted(
    name
    for name in STRATEGIES.builtin
    if (can := make_strategy(name, {}).capabilities).learner is None
    and not {"class_stream", "masks", "graph"} & can.needs
    and not can.pools
)


def config(**more: Any) -> ConfigRecord:
    return ConfigRecord({msg.SERVER_ROUND: 1, msg.GUIDANCE_ROUND: 1, msg.MISSED_ROUND: 1, **more})


@pytest.fixture(scope="module")
def samples():
    return load_data(parse_plan(SMALL).scenario)


def node_of(name: str, samples) -> tuple[Participant, Any]:
    """Return a node of a strategy, and its client."""
    sgd = {"optimizer": "sgd"} if "plain_sgd" in make_strategy(name, {}).capabilities.needs else {}
    fusion: dict[str, Any] = {"strategy": name}
    if aux_networks_of(make_strategy(name, {})).shared_model is not None:
        fusion["shared_args"] = {"hidden": [4]}
    plan = parse_plan(SMALL | {"clients": MLP, "fusion": fusion, "training": {"batch_size": 10, **sgd}})
    share = share_of_client(samples, 0)
    return Participant(None, plan, share), ClientFactory(plan, share.data).build(0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*NAMES, "flwr:FedAvg", "flwr:FedProx"])
def test_every_message_is_checked_against_the_strategy(samples, name):
    """Zeros under every record's name: what the strategy does not send is refused, and the record named."""
    node, client = node_of(name, samples) if name in NAMES else node_of_flower(name, samples)
    zeros = {weight: np.zeros_like(values) for weight, values in client.weights().items()}
    stranger = arrays_to_record({"stranger": np.zeros(3, np.float32)})
    for kind in KINDS:
        sent = RecordDict({msg.CONFIG: config()})
        if kind not in kinds_accepted(node.plan):
            with pytest.raises(InvalidUpload, match="sends no such message"):
                check_message(node, client, kind, sent)
            continue
        accepted = records_accepted(node.plan, kind)
        if node.plan.strategy.capabilities.brings_model:
            check_message(node, client, kind, RecordDict({**sent, msg.ARRAYS: arrays_to_record(zeros)}))
        for record in RECORDS:
            for arrays in (arrays_to_record(zeros), stranger):
                content = RecordDict({msg.CONFIG: config(), record: arrays})
                if record == msg.ARRAYS and record in accepted and arrays is not stranger:
                    continue
                with pytest.raises(InvalidUpload) as refused:
                    check_message(node, client, kind, content)
                if record not in accepted:
                    assert f"'{name}' sends no record '{record}'" in str(refused.value)


def node_of_flower(name: str, samples) -> tuple[Participant, Any]:
    plan = parse_plan(SMALL | {"clients": MLP, "fusion": {"strategy": name}})
    share = share_of_client(samples, 0)
    return Participant(None, plan, share), ClientFactory(plan, share.data).build(0)  # type: ignore[arg-type]


def spoiled_targets() -> dict[str, tuple[np.ndarray, str]]:
    good = np.full((20, 10), 0.1, np.float32)
    return {
        "NaN": (np.where(np.eye(20, 10) > 0, np.nan, good), "array targets has values that are not numbers"),
        "huge": (good + np.float32(3e38), r"array targets has 3e\+38"),
        "transposed": (good.T, r"array targets has shape \[10, 20\], must be \[20, 10\]"),
        "fewer samples": (good[:5], r"array targets has shape \[5, 10\], must be \[20, 10\]"),
        "complex": (good.astype(np.complex64), "array targets is of type complex64"),
    }


@pytest.mark.parametrize("what", spoiled_targets())
def test_guidance_must_fit_the_transfer_set_of_the_node(samples, what):
    node, client = node_of("knfu", samples)
    good = arrays_to_record({"targets": np.full((20, 10), 0.1, np.float32)})
    check_message(node, client, msg.TRAIN, RecordDict({msg.CONFIG: config(), msg.GUIDANCE: good}))
    targets, reason = spoiled_targets()[what]
    content = RecordDict({msg.CONFIG: config(), msg.GUIDANCE: arrays_to_record({"targets": targets})})
    with pytest.raises(InvalidUpload, match=reason):
        check_message(node, client, msg.TRAIN, content)


WRONG_CONFIG: dict[str, tuple[dict[str, Any], str]] = {
    "no such round": ({msg.SERVER_ROUND: 9}, "server-round is 9, must be in 0 … 2"),
    "a negative round": ({msg.SERVER_ROUND: -1}, "config has server-round = -1"),
    "text": ({msg.SERVER_ROUND: "1"}, "config has server-round = '1', must be int"),
    "later guidance": ({msg.GUIDANCE_ROUND: 2}, "guidance-round is 2, later than the message's round 1"),
    "not a number": ({msg.PROXIMAL_MU: float("nan")}, "config has proximal-mu = nan"),
    "another key": ({"dump": True}, "config has 'dump', which no server of this scenario sends"),
}


@pytest.mark.parametrize("what", WRONG_CONFIG)
def test_a_configuration_must_belong_to_this_run(samples, what):
    node, client = node_of("knfu", samples)
    more, reason = WRONG_CONFIG[what]
    with pytest.raises(InvalidUpload, match=reason):
        check_message(node, client, msg.TRAIN, RecordDict({msg.CONFIG: config(**more)}))


def test_a_server_cannot_replace_the_model_of_a_node(dealt, tmp_path):
    """It sends zeros for weights along with a training, and is refused; the client stays what it was."""
    assume_identity()
    found: Deployed = dealt(clients=MLP)
    context = node_context(found.of_client(0), 0, run=77)
    first = Message(RecordDict({msg.CONFIG: ConfigRecord({msg.SERVER_ROUND: 1})}), node_id_of(0), msg.TRAIN)
    client_app(first, context)
    kept = found.of_client(0) / "runs" / "77" / "now.safetensors"
    before = kept.read_bytes()
    weights = {name: values for name, values in load_file(kept).items() if name.startswith("model/")}
    zeros = arrays_to_record({name.removeprefix("model/"): np.zeros_like(v) for name, v in weights.items()})
    content = RecordDict({msg.CONFIG: ConfigRecord({msg.SERVER_ROUND: 2}), msg.ARRAYS: zeros})
    with pytest.raises(UserError, match=r"^the 'train' message is refused: 'knfu' sends no record 'arrays'"):
        client_app(Message(content, node_id_of(0), msg.TRAIN), context)
    assert kept.read_bytes() == before


STREAM = {
    "rounds": None,
    "clients": MLP,
    "continual": {"learner": "naive", "rounds_per_task": 2, "tasks": {"kind": "permuted", "count": 2}},
}
WHOLE: dict[str, dict[str, Any]] = {
    "asked": {"fusion": {"strategy": "dsfl", "samples_per_round": 8}, "clients_per_round": 2, "rounds": 3},
    "averaged": {"clients": MLP, "fusion": {"strategy": "scaffold"}, "training": {"optimizer": "sgd"}},
    "shared model": {"clients": MLP, "fusion": {"strategy": "fedkd_wu", "shared_args": {"hidden": [4]}}},
    "finished": {"end_with": "training"},
    "old tasks": {
        **STREAM,
        "continual": {
            "learner": "naive",
            "rounds_per_task": 1,
            "tasks": {"kind": "permuted", "count": 3, "order": "shuffled"},
        },
        "fusion": {"strategy": "knfu", "knowledge_cache": {}, "backward_transfer": True},
    },
    "protected": {**STREAM, "fusion": {"strategy": "flwr:FedAvg", "orthogonal": {}}},
}


@pytest.mark.parametrize("kind", WHOLE)
def test_nodes_accept_all_messages_of_their_server(dealt, simulated, tmp_path, kind):
    found: Deployed = dealt(**WHOLE[kind])
    assert found.run(tmp_path / "run") == simulated(found)


def test_incomplete_guidance_is_refused_in_one_line(samples):
    """In `apply`, or where guidance that is kept is first used."""
    _, client = node_of("message", samples)
    with pytest.raises(
        UserError, match="guidance is refused: array questions is missing; guidance has answered"
    ):
        client.complete(client.learn({"answered": np.zeros(0, np.uint8)}, 1))
    _, client = node_of("fd", samples)
    client.complete(client.learn({"label_logits": np.zeros((10, 10), np.float32)}, 1))
    with pytest.raises(
        UserError, match="guidance is refused: array owners is missing; guidance has label_logits"
    ):
        client.complete(client.train(2))
