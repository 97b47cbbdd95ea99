"""Messages in flight to the actors, with shared records."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict

from fedkd.engine.ray.actor import Part
from fedkd.federation import client_of_node, replace_content
from fedkd.federation.messages import records as msg


@dataclass(frozen=True, eq=False)
class Call:
    """A call of an actor with `number`, without the messages that rebuild a client.

    `states` refers to the clients' states afterwards, if they are kept.
    """

    actor: int
    messages: tuple[Message, ...]
    number: int
    states: Any = None


class Batch:
    """Messages in flight.

    Attributes:
        shared: References to records of several messages, by `id`.
        waiting: Unanswered calls, in the order in which actors handle them.
        since: Time when each actor began its first call.
    """

    def __init__(self, shared: dict[int, Any]) -> None:
        self.shared = shared
        self.waiting: dict[Any, Call] = {}
        self.since: dict[int, float] = {}
        self._numbers = count()

    def add(self, reference: Any, actor: int, messages: Sequence[Message], states: Any = None) -> None:
        if not any(call.actor == actor for call in self.waiting.values()):  # stops early among thousands
            self.since[actor] = time.monotonic()
        self.waiting[reference] = Call(actor, tuple(messages), next(self._numbers), states)

    def of(self, actor: int) -> list[Call]:
        return [call for call in self.waiting.values() if call.actor == actor]

    def forget(self, actor: int) -> None:
        self.waiting = {ref: call for ref, call in self.waiting.items() if call.actor != actor}


def shared_records(messages: Sequence[Message]) -> dict[int, ArrayRecord]:
    """Return the records that are in several messages, by `id`."""
    records = [record for message in messages for record in message.content.array_records.values()]
    uses = Counter(map(id, records))
    return {id(record): record for record in records if uses[id(record)] > 1}


def without_shared(message: Message, shared: Mapping[int, Any]) -> Part:
    """Return the message without its shared records, and their keys by name."""
    records = message.content.array_records
    places = {name: id(record) for name, record in records.items() if id(record) in shared}
    if not places:
        return message, places
    kept = RecordDict({name: record for name, record in message.content.items() if name not in places})
    return replace_content(message, kept), places


def lend_idle(messages: Sequence[Message], owner: Mapping[int, int], nodes: Mapping[int, str]) -> None:
    """Lend an evaluated client threads of its node's idle actors; averaged weights have one client."""
    actor_of = [owner[client_of_node(message.metadata.dst_node_id)] for message in messages]
    busy = Counter(nodes[actor] for actor in set(actor_of))
    there = Counter(nodes.values())
    for message, actor in zip(messages, actor_of, strict=True):
        lanes = there[nodes[actor]] // busy[nodes[actor]]
        if lanes > 1 and message.metadata.message_type == msg.EVALUATE and msg.CONFIG in message.content:
            message.content.config_records[msg.CONFIG][msg.LANES] = lanes
