"""The Flower ClientApp, the same everywhere; handlers are coroutines that yield training jobs."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import nan
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedkd.clients import SPLITS, Client, Split, run_trials, trial_knowledge
from fedkd.federation.apps.context import client_behind, node_of
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record, record_to_arrays, values_of
from fedkd.federation.messages.node_gate import check_leaving, refuse_message, refuse_to_answer
from fedkd.plugins import contain_plugin
from fedkd.training import Score, Training, run_trainings

client_app = ClientApp()

ALWAYS = (msg.ARRAYS, msg.METRICS, msg.STATE)
"""Records that a reply has even if they are empty."""


def _train(client: Client, message: Message) -> Training[Message]:
    config, round = _config_of(message), _round_of(message)
    yield from _receive(client, message.content, round)
    loss = yield from client.train(round, proximal_mu=float(config.get(msg.PROXIMAL_MU, 0.0)))
    if config.get(msg.MEASURE_TRAINED, False) and client.evaluated:
        client.evaluator.measure_before_fusion(round)
    asked = message.content.array_records.get(msg.REQUEST)
    request = None if asked is None else values_of(asked[msg.SAMPLES])
    uploaded = client.upload(round, request)
    figures: dict[str, Any] = {msg.NUM_EXAMPLES: client.num_train_samples, "train_loss": loss}
    if config.get(msg.TELL_TRAINED, False) and client.evaluated:
        scores = {split: client.evaluator.evaluate(split, round) for split in SPLITS}
        figures |= {f"{msg.TRAINED}{split}": score.accuracy for split, score in scores.items()}
        figures |= {
            f"{name}_before_fusion_{split}": value
            for split, score in scores.items()
            for name, value in score.metrics.items()
        }
    curves: dict[str, Any] = {} if client.stream is None else client.stream.curves
    told = {msg.CURVES: ConfigRecord(curves), msg.AT_CHANCE: _at_chance(client)}
    return _reply(message, client, arrays=arrays_to_record(uploaded), metrics=MetricRecord(figures), **told)


def _at_chance(client: Client) -> ConfigRecord:
    hits = client.last_hits
    if hits is None or not hits.at_chance:
        return ConfigRecord()
    return ConfigRecord({msg.ACCURACY: hits.accuracy, msg.CHANCE: hits.chance})


def _evaluate(client: Client, message: Message) -> Training[Message]:
    config, round = _config_of(message), _round_of(message)
    with client.prediction_threads(int(config.get(msg.LANES, 1))):
        yield from _receive(client, message.content, round, measured=True)
        with client.evaluator.shared_predictions():
            scores = {split: client.evaluator.evaluate_after_fusion(split, round) for split in SPLITS}
            return _evaluated(client, message, round, scores)


def _evaluated(
    client: Client, message: Message, round: int, scores: Mapping[Split, Score], **told: float
) -> Message:
    """Return the reply to an evaluation; figures that are not measured are NaN."""
    metrics: dict[str, Any] = {msg.NUM_EXAMPLES: client.num_train_samples, **told}
    for split, score in scores.items():
        moments = client.effect.before_and_after(round, split, score.quality)
        if score.main is not None:  # there is no accuracy in regression
            moments |= dict.fromkeys(("accuracy_before_fusion", "accuracy"), nan)
        metrics |= {f"{name}_{split}": value for name, value in moments.items()}
        metrics[f"loss_{split}"] = score.loss
        metrics |= client.effect.metrics_before_and_after(round, split, score.metrics)
        for name, own in client.evaluator.evaluate_models(split, score, round).items():
            both = client.effect.before_and_after_of(round, name, split, own.accuracy)
            metrics |= {f"{metric}_{split}": value for metric, value in both.items()}
    metrics |= client.evaluator.fidelity(round, scores["global"]) | client.task_metrics(round)
    learned: dict[str, Any] = {} if client.stream is None else client.stream.learner_report(round)
    report = ConfigRecord(learned | client.evaluator.choices())
    return _reply(message, client, metrics=MetricRecord(metrics), **{msg.LEARNER: report})


def _finish(client: Client, message: Message) -> Training[Message]:
    round = _round_of(message)
    yield from _receive(client, message.content, round)
    loss = yield from client.train(round)
    with client.evaluator.shared_predictions():
        scores = {split: client.evaluator.evaluate(split) for split in SPLITS}
        reply = _evaluated(client, message, round, scores, train_loss=loss)
    if told := _at_chance(client):
        reply.content[msg.AT_CHANCE] = told
    return reply


def _end_task(client: Client, message: Message) -> Training[Message]:
    """Apply guidance, and end the task; sketch its layers' inputs if asked to."""
    content, round = message.content, _round_of(message)
    yield from _receive(client, content, round, measured=True)
    told: dict[str, Any] = {}
    if msg.BASES in content:
        sketches = client.sketch(round, record_to_arrays(content.array_records[msg.BASES]))
        told = {
            msg.ARRAYS: arrays_to_record(sketches),
            msg.METRICS: MetricRecord({msg.NUM_EXAMPLES: client.num_train_samples}),
        }
    client.end_task()
    return _reply(message, client, **told)


def _show(client: Client, message: Message) -> Training[Message]:
    yield from ()
    return _reply(message, client, arrays=arrays_to_record(trial_knowledge(client, _round_of(message))))


def _try_out(client: Client, message: Message) -> Training[Message]:
    probabilities = values_of(message.content.array_records[msg.ARRAYS][msg.PROBABILITIES])
    epochs = int(_config_of(message)[msg.EPOCHS])
    trials = yield from run_trials(client, probabilities, epochs, _round_of(message))
    return _reply(message, client, arrays=arrays_to_record(trials))


def _export_state(client: Client, message: Message) -> Training[Message]:
    yield from ()
    return _reply(message, client, state=arrays_to_record(client.state()))


def _import_state(client: Client, message: Message) -> Training[Message]:
    yield from ()
    client.restore(record_to_arrays(message.content.array_records[msg.STATE]))
    return _reply(message, client)


def _receive(client: Client, content: RecordDict, round: int, *, measured: bool = False) -> Training[None]:
    """Apply weights or guidance; with `measured`, measure the client before guidance of this round."""
    if content.array_records.get(msg.ARRAYS):
        client.load_weights(record_to_arrays(content.array_records[msg.ARRAYS]))
    client.enter(round)
    config: Any = content.config_records[msg.CONFIG]
    for record, of_round in ((msg.GUIDANCE, msg.GUIDANCE_ROUND), (msg.MISSED, msg.MISSED_ROUND)):
        if record not in content or (fused := int(config[of_round])) <= client.applied_round:
            continue
        if measured and client.evaluated and record == msg.GUIDANCE and fused == round:
            client.evaluator.measure_before_fusion(round, changes=client.guidance_changes_predictions)
        yield from client.learn(record_to_arrays(content.array_records[record]), fused)
    for task in msg.old_tasks(content):
        name = f"{msg.OLD}{task}"
        guidance = record_to_arrays(content.array_records[name])
        yield from client.learn_old_task(task, guidance, int(config[name]))


def _config_of(message: Message) -> Mapping[str, Any]:
    return message.content.config_records[msg.CONFIG]


def _round_of(message: Message) -> int:
    return int(_config_of(message)[msg.SERVER_ROUND])


def _reply(message: Message, client: Client, **records: Any) -> Message:
    told = {name: record for name, record in records.items() if record or name in ALWAYS}
    content = RecordDict({msg.IDENTITY: msg.identity(client.index), **told})
    return Message(content, reply_to=message)


HANDLERS: dict[str, Callable[[Client, Message], Training[Message]]] = {
    msg.TRAIN: _train,
    msg.EVALUATE: _evaluate,
    msg.END_TASK: _end_task,
    msg.FINISH: _finish,
    msg.SHOW: _show,
    msg.TRY_OUT: _try_out,
    msg.EXPORT_STATE: _export_state,
    msg.IMPORT_STATE: _import_state,
}


def answer_batch(requests: Sequence[tuple[Message, Context]]) -> list[Message | Exception]:
    """Handle messages of one kind together; return each client's reply or exception."""
    outcomes: dict[int, Message | Exception] = {}
    began = time.perf_counter()
    with ExitStack() as stack:
        clients: dict[int, Client] = {}
        for number, (_, context) in enumerate(requests):
            try:
                with contain_plugin():
                    clients[number] = stack.enter_context(client_behind(context))
            except Exception as error:  # must not stop the others
                outcomes[number] = error
        handled = [
            HANDLERS[requests[number][0].metadata.message_type](client, requests[number][0])
            for number, client in clients.items()
        ]
        if len({id(client.workplace) for client in clients.values()}) < len(clients):
            groups = [[one] for one in handled]  # one after the other
        else:
            groups = [handled] if handled else []
        executors = [client.executor for client in clients.values()]  # all the same
        done = [outcome for group in groups for outcome in run_trainings(group, executors[0])]
        share = (time.perf_counter() - began) / max(1, len(done))
        timed = [_timed(found, share) if isinstance(found, Message) else found for found in done]
        outcomes |= zip(clients, timed, strict=True)
    return [outcomes[number] for number in range(len(requests))]


def answer(message: Message, context: Context) -> Message:
    """Handle a message by the client of a context (see `HANDLERS`)."""
    began = time.perf_counter()
    kind, node = message.metadata.message_type, node_of(context)
    if node is not None:
        refuse_to_answer(kind)
    round = _round_of(message) if msg.CONFIG in message.content else 0
    with client_behind(context, f"{kind} {round}") as client:  # a repeated message has the same name
        if node is not None:
            refuse_message(node, client, message)
        reply = client.complete(HANDLERS[kind](client, message))
        if node is not None:
            check_leaving(node.plan, kind, reply.content)
    return _timed(reply, time.perf_counter() - began)


def _timed(reply: Message, seconds: float) -> Message:
    reply.content.config_records[msg.IDENTITY][msg.SECONDS] = seconds
    return reply


@client_app.query("identify")
def identify(message: Message, context: Context) -> Message:
    """Return the node's client, and its federation if the node has a share of the data."""
    node = node_of(context)
    said = msg.identity(int(context.node_config["partition-id"]))
    if node is not None:
        said[msg.FEDERATION] = node.federation
    return Message(RecordDict({msg.IDENTITY: said}), reply_to=message)


client_app.train()(answer)
client_app.evaluate()(answer)
for _kind in HANDLERS.keys() - {msg.TRAIN, msg.EVALUATE}:
    client_app.query(_kind.removeprefix("query."))(answer)
