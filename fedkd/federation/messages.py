"""What the messages of a round carry, and what replies say.

| message              | to the client                              | back                                   |
|----------------------|--------------------------------------------|----------------------------------------|
| `train`              | `config` {server-round, guidance-round},   | `identity` {client}, `metrics`,        |
|                      | `guidance` {targets, …}, `missed` (newest  | `arrays` (knowledge or weights),       |
|                      | guidance of rounds without the client),    | `curves` (accuracy after each epoch)   |
|                      | `old-TASK` (of a task it has left),        |                                        |
|                      | `request` {samples}; or `arrays` (weights) | `at-chance` (if training was no better |
|                      |                                            | than guessing)                         |
| `evaluate`           | the same                                   | `identity`, `metrics`, `learner`       |
|                      |                                            | (figures about a task that has ended,  |
|                      |                                            | and what the client has chosen)        |
| `query.end_task`     | the same, and `bases` (of what of each     | `identity`; then `arrays` (sketches),  |
|                      | layer's inputs is protected) to those who  | `metrics` {num-examples}               |
|                      | are to send sketches of the others         |                                        |
| `query.finish`       | the same                                   | `identity`, `metrics` (of one more     |
|                      |                                            | training, and of an evaluation),       |
|                      |                                            | `at-chance`                            |
| `query.show`         | `config` {server-round}                    | `identity`, `arrays` {logits, start}   |
| `query.try_out`      | the same, and `arrays` {probabilities of   | `identity`, `arrays` {gains, answers}  |
|                      | all clients}                               |                                        |
| `query.identify`     | nothing                                    | `identity` {client, federation}        |
| `query.export_state` | nothing                                    | `identity`, `state`                    |
| `query.import_state` | `state`                                    | `identity`                             |

Flower's own strategies send and expect one ArrayRecord `arrays`, one MetricRecord `metrics` and a
ConfigRecord `config`; knowledge keeps the same keys, so both kinds speak to the same ClientApp.
"""

from __future__ import annotations

import re

from flwr.app import ConfigRecord, Message, RecordDict

from fedkd.errors import ActorsLost, RunFailed, TrainingDiverged, UserError
from fedkd.scenario.schema import Scenario

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
"""Begins the record of guidance of an old task, named by its number, and the key of its round."""
REQUEST = "request"
STATE = "state"

GUIDED = frozenset({GUIDANCE, MISSED})
"""Records that guidance comes in."""

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
"""Messages that clients may train for: guidance comes with all of them."""

SERVER_ROUND = "server-round"
GUIDANCE_ROUND = "guidance-round"
MISSED_ROUND = "missed-round"
MEASURE_TRAINED = "measure-trained"
LANES = "lanes"
"""In the configuration of an evaluation: how many threads may predict, as others' processors are idle."""
TELL_TRAINED = "tell-trained"
"""In the configuration of a training: whether its reply tells the accuracies of what was trained."""
TRAINED = "accuracy_trained_"
"""Begins the metrics of such a reply, which end with their splits."""
PROXIMAL_MU = "proximal-mu"
NUM_EXAMPLES = "num-examples"
SAMPLES = "samples"
CLIENT = "client"
FEDERATION = "federation"
"""In the identity of a deployed node: the digest of what all participants have in common."""
SECONDS = "seconds"
"""In the identity: what the client's work on a message took; or an equal share, of several together."""
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
"""How Flower's runtimes write down what a ClientApp has raised."""


def identity(client: int) -> ConfigRecord:
    """Return the record by which a reply says which client it is from."""
    return ConfigRecord({CLIENT: client})


def old_tasks(content: RecordDict) -> list[int]:
    """Return the old tasks that a message has guidance of, ascending."""
    return sorted(int(name.removeprefix(OLD)) for name in content.array_records if name.startswith(OLD))


def sender(reply: Message) -> int:
    """Return the client index a reply names, or its node id when the client does not say.

    Node ids are random on Flower's runtimes; sums taken in their order would differ from run to run.
    """
    content: RecordDict = reply.content
    if IDENTITY in content:
        return int(content.config_records[IDENTITY][CLIENT])  # type: ignore[arg-type]
    return reply.metadata.src_node_id


def metrics_of(reply: Message) -> dict[str, float]:
    """Return the metrics of a reply by name."""
    return {name: float(value) for name, value in reply.content.metric_records[METRICS].items()}  # type: ignore[arg-type]


def first_line(reply: Message) -> str:
    """Return the first line of the reason of an error reply: what kind of error it was, and its words."""
    reason = reply.error.reason or ""
    raised = _OF_FLOWER.fullmatch(reason)
    if raised is not None:
        reason = f"{raised[1]}: {raised[2]}" if raised[2] else raised[1]
    return (reason.strip().removeprefix("Error: ") or "failed without saying why").splitlines()[0]


def failure_of(reply: Message, client: int | None, round: int | None) -> Exception:
    """Return the error that an error reply stands for; None: the client, or the round, is not known."""
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
