"""The Flower ClientApp, the same on fedkd's engines, Flower's simulation and real SuperNodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedkd.federation import messages as msg
from fedkd.federation.arrays import from_record, to_record, values_of
from fedkd.federation.client import SPLITS, Client
from fedkd.federation.participant import LocalContext, client_from_context
from fedkd.fusion.views import Arrays
from fedkd.training.device import torch_threads

app = ClientApp()

ALWAYS = (msg.ARRAYS, msg.METRICS, msg.STATE)
"""Records of a reply that are there even if they are empty."""


@contextmanager
def participant(context: Context) -> Iterator[Client]:
    """Yield the client behind a context.

    On fedkd's engines the live client stays in the process that owns it. Flower's runtimes move the context
    between processes, so there the client is rebuilt from the context's state and written back to it.
    """
    if isinstance(context, LocalContext):
        with torch_threads(context.threads):
            yield context.client()
        return
    client, threads = client_from_context(context)
    with torch_threads(threads):
        if msg.STATE in context.state:
            client.restore(from_record(context.state.array_records[msg.STATE]))
        yield client
    context.state[msg.STATE] = to_record(client.state())


def _reply(message: Message, client: Client, **records) -> Message:
    told = {name: record for name, record in records.items() if record or name in ALWAYS}
    content = RecordDict({msg.IDENTITY: msg.identity(client.index), **told})
    return Message(content, reply_to=message)


def _receive(client: Client, content: RecordDict, round: int, *, measured: bool = False) -> Arrays | None:
    """Take what the server sent along: weights, or guidance, which is returned.

    The round of guidance is that in which it was fused: an earlier one than the message's, as a rule.

    Args:
        client: Takes it.
        content: Of the message.
        round: The message's.
        measured: Whether to remember how the client does just before the guidance.
    """
    if content.array_records.get(msg.ARRAYS):
        client.load_weights(from_record(content.array_records[msg.ARRAYS]))
    client.enter(round)
    if msg.GUIDANCE not in content:
        return None
    if measured and not client.teaches_locally:
        client.remember_baseline(round, SPLITS)
    guidance = from_record(content.array_records[msg.GUIDANCE])
    client.learn(guidance, int(content.config_records[msg.CONFIG][msg.GUIDANCE_ROUND]))  # type: ignore[arg-type]
    return guidance


@app.train()
def train(message: Message, context: Context) -> Message:
    """Apply pending guidance, train locally, and upload knowledge or weights."""
    with participant(context) as client:
        config = message.content.config_records[msg.CONFIG]
        round = int(config[msg.SERVER_ROUND])  # type: ignore[arg-type]
        _receive(client, message.content, round)
        loss = client.train(round, proximal_mu=float(config.get(msg.PROXIMAL_MU, 0.0)))  # type: ignore[arg-type]
        if config.get(msg.MEASURE_BASELINE, False):
            # On the common test set the weights that were averaged matter, not each client's own.
            client.remember_baseline(round, ["local"])
        asked = message.content.array_records.get(msg.REQUEST)
        request = None if asked is None else values_of(asked[msg.SAMPLES])
        uploaded = client.weights() if client.exchanges_weights else client.knowledge(round, request)
        metrics = MetricRecord({msg.NUM_EXAMPLES: client.num_train_samples, "train_loss": loss})
        curves = ConfigRecord(client.learning_curves())  # type: ignore[arg-type]
        return _reply(message, client, arrays=to_record(uploaded), metrics=metrics, **{msg.CURVES: curves})


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Apply what the server sent, evaluate, and report the accuracy gained by it.

    What is not measured, like the gain of a client that nothing was fused for this round, is NaN: every reply
    has to have the same keys.
    """
    with participant(context) as client:
        config = message.content.config_records[msg.CONFIG]
        round = int(config[msg.SERVER_ROUND])  # type: ignore[arg-type]
        guidance = _receive(client, message.content, round, measured=True)
        client.leave(round)
        before = client.baseline(round)
        metrics: dict[str, Any] = {msg.NUM_EXAMPLES: client.num_train_samples}
        for split in SPLITS:
            score = client.evaluate_fused(split, round)
            metrics[f"accuracy_{split}"] = score.accuracy
            metrics[f"loss_{split}"] = score.loss
            metrics[f"fusion_gain_{split}"] = score.accuracy - before[split]
        metrics |= client.fidelity(guidance, score) | client.task_metrics(round)
        report = ConfigRecord(client.learner_report(round))  # type: ignore[arg-type]
        return _reply(message, client, metrics=MetricRecord(metrics), **{msg.LEARNER: report})


@app.query("identify")
def identify(message: Message, context: Context) -> Message:
    """Say which client this node simulates."""
    client = int(context.node_config["partition-id"])
    return Message(RecordDict({msg.IDENTITY: msg.identity(client)}), reply_to=message)


@app.query("export_state")
def export_state(message: Message, context: Context) -> Message:
    """Return the client's whole state, for a checkpoint."""
    with participant(context) as client:
        return _reply(message, client, state=to_record(client.state()))


@app.query("import_state")
def import_state(message: Message, context: Context) -> Message:
    """Take over a state from a checkpoint."""
    with participant(context) as client:
        client.restore(from_record(message.content.array_records[msg.STATE]))
        return _reply(message, client)
