"""The gate of a deployed node: messages that it accepts, and records that may leave it."""

from collections.abc import Mapping
from contextlib import suppress
from math import inf
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from fedkd.clients import CLASS_COUNT_SUFFIX, PREDICTIONS_SENT, TOP_CLASS_SUFFIX, Client
from fedkd.data import FederatedData, FederatedStream
from fedkd.errors import FedkdError, UserError
from fedkd.federation.apps.context import Participant
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import record_to_arrays
from fedkd.fusion import (
    SHARED_NETWORK,
    Arrays,
    InvalidUpload,
    aux_networks_of,
    check_guidance,
    check_weight,
    declares_upload,
    overrides_hook,
    upload_sizes,
)
from fedkd.plan import Plan

_NUMBERS: Mapping[str, tuple[type, float]] = {
    msg.SERVER_ROUND: (int, inf),
    msg.GUIDANCE_ROUND: (int, inf),
    msg.MISSED_ROUND: (int, inf),
    msg.MEASURE_TRAINED: (bool, 1),
    msg.TELL_TRAINED: (bool, 1),
    msg.LANES: (int, 1024),
    msg.PROXIMAL_MU: (float, 1e15),
}
"""Keys of a message's configuration: type and largest value."""
OF_NETWORK = frozenset("PBTSOF")
"""Letters of shapes that depend on a client's network."""
ASKED_IN_SIMULATIONS = frozenset({msg.EXPORT_STATE, msg.IMPORT_STATE, msg.SHOW, msg.TRY_OUT})
"""Messages of simulations: they move a client's whole state, or predictions that it does not exchange."""
FIGURES = frozenset({msg.IDENTITY, msg.METRICS, msg.CURVES, msg.AT_CHANCE, msg.LEARNER})
"""Records of numbers about a client."""


def kinds_accepted(plan: Plan) -> frozenset[str]:
    end_task = {msg.END_TASK} if plan.learner is not None else set()
    finish = {msg.FINISH} if plan.scenario.end_with == "training" else set()
    return frozenset({msg.TRAIN, msg.EVALUATE} | end_task | finish)


def records_accepted(plan: Plan, kind: str) -> frozenset[str]:
    """Return the records that a message of a kind may have."""
    strategy, fusion = plan.strategy, plan.scenario.fusion
    found = {msg.CONFIG}
    if strategy.capabilities.brings_model:
        found.add(msg.ARRAYS)
    elif strategy.capabilities.sends != "nothing":
        found |= msg.GUIDED
        if kind == msg.TRAIN and overrides_hook(strategy, "request"):
            found.add(msg.REQUEST)
        if kind == msg.TRAIN and fusion.backward_transfer:
            tasks = (span.task or 0 for course in plan.schedule.courses for span in course)
            found |= {f"{msg.OLD}{task}" for task in range(max(tasks, default=0) + 1)}
    if kind == msg.END_TASK and fusion.orthogonal is not None:
        found.add(msg.BASES)
    return frozenset(found)


def refuse_message(node: Participant, client: Client, message: Message) -> None:
    """Raise `UserError` for a message that the server of the node's plan would not send."""
    kind = message.metadata.message_type
    try:
        check_message(node, client, kind, message.content)
    except InvalidUpload as misfit:
        raise UserError(f"the '{kind}' message is refused: {misfit}") from None


def check_message(node: Participant, client: Client, kind: str, content: RecordDict) -> None:
    """Raise `InvalidUpload` for the first fault in a message."""
    plan = node.plan
    if kind not in kinds_accepted(plan):
        raise InvalidUpload(f"'{plan.scenario.fusion.strategy}' sends no such message in this scenario")
    allowed = records_accepted(plan, kind)
    for name in content:
        if name not in allowed:
            raise InvalidUpload(f"'{plan.scenario.fusion.strategy}' sends no record '{name}'")
    if msg.CONFIG not in content.config_records:
        raise InvalidUpload(f"record '{msg.CONFIG}' is missing")
    round = _check_config(plan, content)
    if plan.capabilities.brings_model:
        _check_model(client, _arrays(content, msg.ARRAYS))
    task = plan.schedule.task(client.index, round) or 0
    for record in sorted(content.keys() & msg.GUIDED):
        check_guidance(plan.strategy, _arrays(content, record), _sizes(node, client, task))
    for old in msg.old_tasks(content):
        check_guidance(plan.strategy, _arrays(content, f"{msg.OLD}{old}"), _sizes(node, client, old))
    if msg.REQUEST in content:
        _check_request(_arrays(content, msg.REQUEST), _sizes(node, client, task)["M"])
    if msg.BASES in content:
        for name, values in _arrays(content, msg.BASES).items():
            check_weight(name, values, np.empty(values.shape if values.ndim == 2 else (0, 0), np.float32))


def _arrays(content: RecordDict, record: str) -> Arrays:
    if record not in content.array_records:
        raise InvalidUpload(f"record '{record}' is missing, or has no arrays")
    try:
        return record_to_arrays(content.array_records[record])
    except Exception as error:  # the bytes come from another machine
        raise InvalidUpload(f"record '{record}' cannot be read: {type(error).__name__}") from None


def _check_config(plan: Plan, content: RecordDict) -> int:
    config: Mapping[str, Any] = content.config_records[msg.CONFIG]
    for name, value in config.items():
        old = name.startswith(msg.OLD) and name in content
        expected = (int, inf) if old else _NUMBERS.get(name)
        if expected is None:
            raise InvalidUpload(f"{msg.CONFIG} has '{name}', which no server of this scenario sends")
        kind, most = expected
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or not 0 <= value <= most:
            raise InvalidUpload(
                f"{msg.CONFIG} has {name} = {value!r}, must be {kind.__name__} in 0 … {most:g}"
            )
    for record, key in ((msg.GUIDANCE, msg.GUIDANCE_ROUND), (msg.MISSED, msg.MISSED_ROUND)):
        if record in content and key not in config:
            raise InvalidUpload(f"{msg.CONFIG} has no '{key}' for the record '{record}'")
    for task in msg.old_tasks(content):
        if f"{msg.OLD}{task}" not in config:
            raise InvalidUpload(f"{msg.CONFIG} has no round for the record '{msg.OLD}{task}'")
    round = config.get(msg.SERVER_ROUND)
    if round is None or round > plan.last_round:
        raise InvalidUpload(f"{msg.SERVER_ROUND} is {round!r}, must be in 0 … {plan.last_round}")
    for key in (msg.GUIDANCE_ROUND, msg.MISSED_ROUND):
        if (told := config.get(key, 0)) > round:
            raise InvalidUpload(f"{key} is {told}, later than the message's round {round}")
    return int(round)


def _check_model(client: Client, arrays: Arrays) -> None:
    own = client.weights()
    if strange := sorted(own.keys() ^ arrays.keys()):
        raise InvalidUpload(f"the model has other arrays than the client's, such as {strange[0]}")
    for name, values in arrays.items():
        check_weight(name, values, own[name])


def _check_request(arrays: Arrays, size: int) -> None:
    asked = arrays.get(msg.SAMPLES)
    if asked is None or len(arrays) > 1 or asked.ndim != 1 or asked.dtype.kind not in "iu":
        raise InvalidUpload(f"record '{msg.REQUEST}' must have one array '{msg.SAMPLES}' of indices")
    if len(asked) and (asked[0] < 0 or asked[-1] >= size or (np.diff(asked.astype(np.int64)) <= 0).any()):
        raise InvalidUpload(f"array {msg.SAMPLES} must have indices in 0 … {size - 1}, ascending")


def _sizes(node: Participant, client: Client, task: int) -> dict[str, int]:
    """Return a client's sizes of arrays in a task (see `fedkd.fusion.forms`); 0 without a stream."""
    data = node.share.data
    part: FederatedData = data[task].data if isinstance(data, FederatedStream) else data
    samples = len(part.transfer_x)
    found = {"M": samples, "Y": -(-samples // 8), "C": part.classes}
    strategy = node.plan.strategy
    shapes = (strategy.capabilities.receives or {}).values()
    if OF_NETWORK & {letter for shape in shapes for letter in shape.split()}:
        shared = aux_networks_of(strategy).shared_model is not None
        with suppress(FedkdError):  # the client has an estimator
            weights = client.weights(SHARED_NETWORK) if shared else client.weights()
            found |= upload_sizes(strategy, weights, client.trainable())
    return found


def refuse_to_answer(kind: str) -> None:
    """Refuse a message of simulations."""
    if kind in ASKED_IN_SIMULATIONS:
        raise UserError(f"a deployed client never sends its state; '{kind}' is for simulations")


def check_leaving(plan: Plan, kind: str, content: RecordDict) -> None:
    """Raise `UserError` for a reply with records that the strategy does not exchange."""
    strange = next((name for name in content if name != msg.ARRAYS and name not in FIGURES), None)
    if strange is not None:
        raise UserError(f"record '{strange}' must not leave the node: no strategy exchanges it")
    arrays = record_to_arrays(content.array_records.get(msg.ARRAYS, ArrayRecord()))
    if not arrays or (kind == msg.END_TASK and plan.scenario.fusion.orthogonal is not None):
        return  # orthogonal training exchanges sketches of layers' inputs
    strategy = plan.scenario.fusion.strategy
    if kind != msg.TRAIN or plan.capabilities.sends == "nothing":
        raise UserError(f"'{strategy}' exchanges no arrays in reply to '{kind}': {', '.join(arrays)}")
    for name in arrays if declares_upload(plan.strategy) else ():
        stages = name == PREDICTIONS_SENT or name.endswith((TOP_CLASS_SUFFIX, CLASS_COUNT_SUFFIX))
        if name not in plan.capabilities.kinds and not stages:
            raise UserError(f"'{strategy}' exchanges no array '{name}'")
