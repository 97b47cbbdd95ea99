"""What a reply says: its metrics, or what went wrong."""

from __future__ import annotations

import re

from flwr.app import Message

from fedkd.errors import ActorsLost, RunFailed, TrainingDiverged, UserError
from fedkd.federation import messages as msg
from fedkd.scenario.schema import Scenario


def metrics_of(reply: Message) -> dict[str, float]:
    """Return the metrics of a reply by name."""
    return {name: float(value) for name, value in reply.content.metric_records[msg.METRICS].items()}  # type: ignore[arg-type]


_OF_FLOWER = re.compile(r"<class '(?:[\w.]+\.)?(\w+)'>:<'(.*)'>", re.DOTALL)
"""How Flower's runtimes write down what a ClientApp has raised."""


def first_line(reply: Message) -> str:
    """Return the first line of the reason of an error reply: what kind of error it was, and its words."""
    reason = reply.error.reason or ""
    raised = _OF_FLOWER.fullmatch(reason)
    if raised is not None:
        reason = f"{raised[1]}: {raised[2]}" if raised[2] else raised[1]
    return (reason.strip().removeprefix("Error: ") or "failed without saying why").splitlines()[0]


def failure_of(reply: Message, client: int | None, round: int | None) -> Exception:
    """Return the error that an error reply stands for.

    Args:
        client: The client it is from; None: it did not come to say.
        round: The round it happened in; None: before the first.
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
