"""Replies of clients, single or joint, live or rebuilt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from threadpoolctl import threadpool_info, threadpool_limits

from fedkd.clients.client import EFFECT, Client
from fedkd.clients.evaluation.fusion_effect import CORRECT, FOLLOWED
from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.errors import TrainingDiverged
from fedkd.federation.apps.client_app import answer_batch, client_app
from fedkd.federation.apps.context import client_behind, local_context
from fedkd.federation.compat import RUN_ID, assume_identity, node_id_of
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record, record_to_arrays
from fedkd.federation.messages.records import metrics_of
from fedkd.plan.load import parse_plan
from fedkd.plan.plan import Plan
from fedkd.scenario.dump import dump_toml

MLP = {"model": "mlp", "args": {"hidden": [12], "dropout": 0.2}}
FIDELITY = ("agreement", "guidance_kl", "positive_flips", "negative_flips")


@pytest.fixture
def tables(digits_scenario) -> dict:
    partition = digits_scenario["data"]["partition"] | {"samples_per_client": 60}
    data = digits_scenario["data"] | {"partition": partition, "test_size": 80}
    return digits_scenario | {"data": data, "clients": [MLP, {"model": "lenet"}]}


@pytest.fixture
def streamed(tables) -> dict:
    del tables["rounds"]
    data = tables["data"] | {"clients": 2, "transfer": {"size": 24}}
    tasks = {"kind": "split", "count": 2, "classes_per_task": 3}
    continual = {"learner": "ewc", "rounds_per_task": 1, "tasks": tasks}
    return tables | {"data": data, "continual": continual, "clients": [MLP]}


def message(client: int, kind: str, round: int, **records) -> Message:
    assume_identity()
    config = {msg.SERVER_ROUND: round}
    if msg.GUIDANCE in records:
        config[msg.GUIDANCE_ROUND] = round if kind != msg.TRAIN else round - 1
    content = {msg.CONFIG: ConfigRecord(config), **{k: arrays_to_record(v) for k, v in records.items()}}
    return Message(RecordDict(content), node_id_of(client), kind, group_id=str(round))


def targets(samples: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), samples).astype(np.float32)


def said(reply: Message) -> dict:
    """Return all that a reply holds, as bytes, but for how long it took."""
    assert not reply.has_error(), reply.error.reason
    content = reply.content
    arrays = {
        (name, key): (values.dtype, values.tobytes())
        for name, record in content.array_records.items()
        for key, values in record_to_arrays(record).items()
    }
    metrics = {
        (name, key): np.float64(value).tobytes()
        for name, record in content.metric_records.items()
        for key, value in record.items()
    }
    told = {name: dict(record) for name, record in content.config_records.items()}
    assert told[msg.IDENTITY].pop(msg.SECONDS) > 0  # the one thing that no two replies have in common
    return arrays | metrics | told


def float_of(answer: dict, metric: str) -> float:
    return float(np.frombuffer(answer[msg.METRICS, metric])[0])


class Live:
    """Contexts of clients that live in this process."""

    def __init__(self, plan: Plan) -> None:
        factory = ClientFactory(plan, load_data(plan.scenario))
        self.contexts = [local_context(factory, n) for n in range(plan.scenario.data.clients)]

    def alone(self, messages: Sequence[Message]) -> list[dict]:
        return [said(client_app(m, self.contexts[m.metadata.dst_node_id - node_id_of(0)])) for m in messages]

    def together(self, messages: Sequence[Message]) -> list[Message | Exception]:
        return answer_batch([(m, self.contexts[m.metadata.dst_node_id - node_id_of(0)]) for m in messages])


def training(clients: int, round: int, samples: int) -> list[Message]:
    """Return train messages with guidance of the round before, for all but the last client."""
    guided = {n: {msg.GUIDANCE: {"targets": targets(samples, 10, seed=n)}} for n in range(clients - 1)}
    return [message(n, msg.TRAIN, round, **guided.get(n, {})) for n in range(clients)]


# Together ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_joint_replies_equal_single_replies(order, tables):
    plan = parse_plan(tables | {"training": tables["training"] | {"local_epochs": 2}})
    one_by_one, together = Live(plan), Live(plan)
    for round in (1, 2):
        wanted = one_by_one.alone(training(4, round, 60))
        messages = training(4, round, 60)
        replies = together.together([messages[n] for n in order])
        assert [said(reply) for reply in replies] == [wanted[n] for n in order]
    evaluations = [message(n, msg.EVALUATE, 2) for n in range(4)]
    wanted = one_by_one.alone(evaluations)
    assert [said(reply) for reply in together.together(evaluations)] == wanted


def test_clients_with_a_shared_model_work_in_turn(tables):
    plan = parse_plan(tables | {"clients": [MLP], "fusion": {"strategy": "flwr:FedAvg"}})
    one_by_one, together = Live(plan), Live(plan)
    assert together.contexts[0].client().workplace is together.contexts[1].client().workplace
    weights = one_by_one.contexts[0].client().weights()
    messages = [message(n, msg.TRAIN, 1, arrays=weights) for n in range(4)]
    wanted = one_by_one.alone(messages)
    assert [said(reply) for reply in together.together(messages)] == wanted
    assert len({said["arrays", name] for said in wanted for name in weights}) > len(weights), "they differ"


@pytest.mark.parametrize("strategy", ["knfu", "flwr:FedAvg"])
def test_a_client_that_fails_does_not_stop_the_others(strategy, tables, monkeypatch):
    plan = parse_plan(tables | {"clients": [MLP], "fusion": {"strategy": strategy}})
    one_by_one, together = Live(plan), Live(plan)
    carried = {} if strategy == "knfu" else {"arrays": one_by_one.contexts[0].client().weights()}
    wanted = one_by_one.alone([message(n, msg.TRAIN, 1, **carried) for n in range(4)])
    train = Client.train

    def failing(self, round, proximal_mu=0.0):
        loss = yield from train(self, round, proximal_mu)
        if self.index == 1:
            raise TrainingDiverged("the loss is not a number")
        return loss

    monkeypatch.setattr(Client, "train", failing)
    replies = together.together([message(n, msg.TRAIN, 1, **carried) for n in range(4)])
    assert isinstance(replies[1], TrainingDiverged)
    assert [said(replies[n]) for n in (0, 2, 3)] == [wanted[n] for n in (0, 2, 3)]


def test_a_client_that_cannot_be_built_does_not_stop_the_others(tables, monkeypatch):
    plan = parse_plan(tables | {"clients": [MLP]})
    one_by_one, together = Live(plan), Live(plan)
    wanted = one_by_one.alone([message(n, msg.TRAIN, 1) for n in range(4)])
    build = ClientFactory.build

    def failing(self, index):
        if index == 0:
            raise ValueError("nobody is there")
        return build(self, index)

    monkeypatch.setattr(ClientFactory, "build", failing)
    replies = together.together([message(n, msg.TRAIN, 1) for n in range(4)])
    assert isinstance(replies[0], ValueError)
    assert [said(reply) for reply in replies[1:]] == wanted[1:]


# The end of a task ---------------------------------------------------------------------------------------


class Rebuilt:
    """One client as on Flower's runtimes: made anew for every message, from the state of its context."""

    def __init__(self, plan: Plan, folder) -> None:
        path = folder / "scenario.toml"
        path.write_text(dump_toml(plan.scenario))
        config = {"scenario": str(path)}
        self.context = Context(RUN_ID, node_id_of(0), {"partition-id": 0}, RecordDict(), config)

    def alone(self, messages: Sequence[Message]) -> list[dict]:
        return [said(client_app(m, self.context)) for m in messages]

    def state(self) -> dict[str, np.ndarray]:
        return record_to_arrays(self.context.state.array_records[msg.STATE])


def test_guidance_at_the_end_of_a_task_is_applied_and_evaluated(streamed, tmp_path):
    """Live or rebuilt between `end_task` and `evaluate`: what is told of the guidance is the same."""
    plan = parse_plan(streamed)
    live, rebuilt = Live(plan), Rebuilt(plan, tmp_path)
    taught = targets(24, 3)
    messages = [
        message(0, msg.TRAIN, 1),
        message(0, msg.END_TASK, 1, guidance={"targets": taught}),
        message(0, msg.EVALUATE, 1),
        message(0, msg.EVALUATE, 1),
    ]
    ours, theirs = [], []
    for one in messages:
        ours += live.alone([one])
        theirs += rebuilt.alone([one])
        if one.metadata.message_type == msg.END_TASK:
            state = rebuilt.state()
            assert EFFECT + CORRECT in state
            assert np.array_equal(state[EFFECT + FOLLOWED + "targets"], taught)
    assert ours == theirs
    assert set(ours[1]) == {msg.IDENTITY}, "the end of a task tells nothing"
    client = live.contexts[0].client()
    assert client.applied_round == 1
    first, second = ({key: float_of(answer, key) for key in FIDELITY} for answer in ours[2:])
    assert np.isfinite(list(first.values())).all(), "the guidance came with the end of the task"
    assert np.isnan(list(second.values())).all(), "told once"
    assert np.isfinite(float_of(ours[2], "fusion_gain_local"))


def test_evaluation_metrics_include_guidance_without_a_stream(tables, tmp_path):
    """Learned with the evaluation, or just before it: the same is measured."""
    plan = parse_plan(tables)
    live, rebuilt = Live(plan), Rebuilt(plan, tmp_path)
    taught = targets(60, 10)
    messages = [message(0, msg.TRAIN, 1), message(0, msg.EVALUATE, 1, guidance={"targets": taught})]
    assert live.alone(messages) == rebuilt.alone(messages)
    context = Live(plan).contexts[0]
    client_app(messages[0], context)
    assert not client_app(message(0, msg.END_TASK, 1, guidance={"targets": taught}), context).has_error()
    apart = metrics_of(client_app(message(0, msg.EVALUATE, 1), context))
    context = Live(plan).contexts[0]
    client_app(messages[0], context)
    assert apart == metrics_of(client_app(messages[1], context))
    assert all(np.isfinite(apart[key]) for key in FIDELITY)


def test_training_discards_unevaluated_guidance(tables):
    live = Live(parse_plan(tables))
    taught = np.full((60, 10), 0.1, np.float32)
    live.alone([message(0, msg.TRAIN, 2, guidance={"targets": taught})])
    metrics = metrics_of(client_app(message(0, msg.EVALUATE, 2), live.contexts[0]))
    assert all(np.isnan(metrics[key]) for key in FIDELITY)
    assert metrics["accuracy_local"] == live.contexts[0].client().evaluator.evaluate("local").accuracy


@pytest.mark.parametrize("model", ["mlp", "gradient-boosting"])
def test_a_client_uses_the_number_of_threads_of_the_scenario(model, streamed):
    """Whichever library does: scikit-learn's pools are none of torch's."""
    import sklearn.ensemble  # noqa: F401, so that there are such pools

    tables = {key: value for key, value in streamed.items() if key != "continual"}
    tables |= {"rounds": 1, "clients": [{"model": model}], "training": {}, "fusion": {"strategy": "knfu"}}
    plan = parse_plan(tables)
    context = local_context(ClientFactory(plan, load_data(plan.scenario)), 0)
    with threadpool_limits(limits=2), client_behind(context):
        assert torch.get_num_threads() == 1
        pools = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"}
        assert (pools == {1}) == (model != "mlp"), "what torch does not use is left alone"
    assert torch.get_num_threads() == 1, "as it was before"
