"""What the Ray engine has handed to its actors and has no answer to yet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from flwr.app import Message


@dataclass(frozen=True, eq=False)
class Call:
    """What an actor has been handed.

    Attributes:
        actor: The actor.
        messages: What it is to handle; none: it makes a client anew.
        number: Calls are worked through, and told of, in this order.
        states: Where what the clients are then will lie, if it is kept.
    """

    actor: int
    messages: tuple[Message, ...]
    number: int
    states: Any = None


class Batch:
    """Messages on their way.

    Args:
        shared: Where records lie that more than one message carries, by their `id`.

    Attributes:
        waiting: What actors have yet to answer, in the order in which each works through it.
        since: When each actor began with the first of it.
    """

    def __init__(self, shared: dict[int, Any]) -> None:
        self.shared = shared
        self.waiting: dict[Any, Call] = {}
        self.since: dict[int, float] = {}
        self._numbers = count()

    def add(self, reference: Any, actor: int, messages: Sequence[Message], states: Any = None) -> None:
        """Take down a call."""
        if not any(call.actor == actor for call in self.waiting.values()):  # found soon, among thousands
            self.since[actor] = time.monotonic()
        self.waiting[reference] = Call(actor, tuple(messages), next(self._numbers), states)

    def of(self, actor: int) -> list[Call]:
        """Return what one actor has yet to answer."""
        return [call for call in self.waiting.values() if call.actor == actor]

    def forget(self, actor: int) -> None:
        """Wait for an actor no longer."""
        self.waiting = {ref: call for ref, call in self.waiting.items() if call.actor != actor}
