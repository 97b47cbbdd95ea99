"""The records of messages and replies.

| message              | to the client                              | back                                   |
|----------------------|--------------------------------------------|----------------------------------------|
| `train`              | `config` {server-round, guidance-round},   | `identity` {client}, `metrics`,        |
|                      | `guidance` {targets, …}, `missed` (newest  | `arrays` (knowledge or weights),       |
|                      | of rounds without the client), `old-TASK`  | `curves` (accuracy after each epoch),  |
|                      | (of a task it has left),                   | `at-chance` (if training was no better |
|                      | `request` {samples}; or `arrays` (weights) | than guessing)                         |
| `evaluate`           | the same                                   | `identity`, `metrics`, `learner` (of a |
|                      |                                            | task that has ended, and choices)      |
| `query.end_task`     | the same; `bases` (protected inputs of     | `identity`; then `arrays` (sketches),  |
|                      | each layer) to clients that send sketches  | `metrics` {num-examples}               |
| `query.finish`       | the same                                   | `identity`, `metrics` (of one more     |
|                      |                                            | training and evaluation), `at-chance`  |
| `query.show`         | `config` {server-round}                    | `identity`, `arrays` {logits, start}   |
| `query.try_out`      | the same, `arrays` {all probabilities}     | `identity`, `arrays` {gains, answers}  |
| `query.identify`     | nothing                                    | `identity` {client, federation}        |
| `query.export_state` | nothing                                    | `identity`, `state`                    |
| `query.import_state` | `state`                                    | `identity`                             |

Flower's strategies have the same keys `arrays`, `metrics` and `config`, so both kinds speak to one ClientApp.
"""

import re
from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from fedkd.errors import ActorsLost, RunFailed, TrainingDiverged, UserError
from fedkd.scenario import Scenario

ARRAYS = "arrays"
AT_CHANCE = "at-chance"
BASES = "bases"
CURVES = "curves"
CONFIG = "config"
GUIDANCE = "guidance"
MISSED = "missed"
IDENTITY = "identity"
LEARNER = "learner"
METRICS = "metrics"
OLD = "old-"
"""Prefix of an old task's record of guidance, and of the key of its round."""
REQUEST = "request"
STATE = "state"

GUIDED = frozenset({GUIDANCE, MISSED})
"""Records that contain guidance."""

TRAIN = "train"
EVALUATE = "evaluate"
IDENTIFY = "query.identify"
END_TASK = "query.end_task"
FINISH = "query.finish"
SHOW = "query.show"
TRY_OUT = "query.try_out"
EXPORT_STATE = "query.export_state"
IMPORT_STATE = "query.import_state"

MAY_TRAIN = frozenset({TRAIN, EVALUATE, END_TASK, FINISH})
"""Messages that clients may train for; all may contain guidance."""

SERVER_ROUND = "server-round"
GUIDANCE_ROUND = "guidance-round"
MISSED_ROUND = "missed-round"
MEASURE_TRAINED = "measure-trained"
LANES = "lanes"
"""Threads that may predict in an evaluation, on idle processors."""
TELL_TRAINED = "tell-trained"
"""True if the reply to a training has the accuracies before fusion."""
TRAINED = "accuracy_before_fusion_"
"""Prefix of these metrics; their split follows."""
PROXIMAL_MU = "proximal-mu"
NUM_EXAMPLES = "num-examples"
SAMPLES = "samples"
CLIENT = "client"
FEDERATION = "federation"
"""In a deployed node's identity: the digest of its federation."""
SECONDS = "seconds"
"""In the identity: seconds of the client's work on a message, or its equal share."""
EPOCHS = "epochs"
PROBABILITIES = "probabilities"
GAINS = "gains"
ANSWERS = "answers"
ACCURACY = "accuracy"
CHANCE = "chance"

# Codes of error replies; the numbers are Flower's own for these cases.
CLIENT_RAISED = 2
NOT_HANDLED = 4
CLIENT_DIED = 5
TIMED_OUT = 1001  # Flower has none for this

_OF_FLOWER = re.compile(r"<class '(?:[\w.]+\.)?(\w+)'>:<'(.*)'>", re.DOTALL)
"""Format of a ClientApp's exception on Flower's runtimes."""


def identity(client: int) -> ConfigRecord:
    return ConfigRecord({CLIENT: client})


def old_tasks(content: RecordDict) -> list[int]:
    """Return the old tasks with guidance in a message, ascending."""
    return sorted(int(name.removeprefix(OLD)) for name in content.array_records if name.startswith(OLD))


def sender(reply: Message) -> int:
    """Return the client that a reply names, else its (random) node id."""
    content: Any = reply.content
    if IDENTITY in content:
        return int(content.config_records[IDENTITY][CLIENT])
    return reply.metadata.src_node_id


def metrics_of(reply: Message) -> dict[str, float]:
    figures: Mapping[str, Any] = reply.content.metric_records[METRICS]
    return {name: float(value) for name, value in figures.items()}


def first_line(reply: Message) -> str:
    """Return the first line of an error reply's reason: the kind of error, and its message."""
    reason = reply.error.reason or ""
    raised = _OF_FLOWER.fullmatch(reason)
    if raised is not None:
        reason = f"{raised[1]}: {raised[2]}" if raised[2] else raised[1]
    return (reason.strip().removeprefix("Error: ") or "failed without saying why").splitlines()[0]


def failure_of(reply: Message, client: int | None, round: int | None) -> Exception:
    """Return the error of an error reply; None: the client, or the round, is unknown."""
    reason = first_line(reply)
    if reply.error.code == CLIENT_DIED:
        return ActorsLost(reason.removesuffix("."), client=client, round=round)
    name, _, message = reason.partition(": ")
    if name == UserError.__name__:
        key, separator, rest = message.partition(": ")
        named = bool(separator) and key.split(".")[0] in Scenario.model_fields
        return UserError(rest, key=key) if named else UserError(message)
    diverged = name == TrainingDiverged.__name__
    plain, details = message if diverged else reason, reply.error.reason or ""
    return RunFailed(plain, client=client, round=round, details=details, diverged=diverged)
