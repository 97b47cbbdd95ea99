"""What a reply says: its metrics, or what went wrong."""

from __future__ import annotations

from flwr.app import Message

from fedkd.errors import ActorsLost, RunFailed, TrainingDiverged, UserError
from fedkd.federation import messages as msg
from fedkd.scenario.schema import Scenario


def metrics_of(reply: Message) -> dict[str, float]:
    """Return the metrics of a reply by name."""
    return {name: float(value) for name, value in reply.content.metric_records[msg.METRICS].items()}  # type: ignore[arg-type]


def first_line(reply: Message) -> str:
    """Return the first line of the reason of an error reply."""
    return (reply.error.reason or "failed without saying why").splitlines()[0]


def failure_of(reply: Message, client: int, round: int) -> Exception:
    """Return the error that an error reply stands for.

    Args:
        reply: The error reply.
        client: The client it is from.
        round: The round it happened in.
    """
    reason = first_line(reply)
    if reply.error.code == msg.CLIENT_DIED:
        return ActorsLost(reason.removesuffix("."), client=client, round=round)
    name, _, message = reason.partition(": ")
    if name == UserError.__name__:
        key, separator, rest = message.partition(": ")
        named = bool(separator) and key.split(".")[0] in Scenario.model_fields
        return UserError(rest, key=key) if named else UserError(message)
    diverged = name == TrainingDiverged.__name__
    plain, details = message if diverged else reason, reply.error.reason or ""
    return RunFailed(plain, client=client, round=round, details=details, diverged=diverged)
