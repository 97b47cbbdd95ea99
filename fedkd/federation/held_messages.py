"""Messages that wait to be sent, and replies that have yet to arrive on the simulated clock, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedkd.federation import messages as msg
from fedkd.federation.arrays import from_record, to_record
from fedkd.federation.messages import metrics_of
from fedkd.namespaces import below, by_number, under

SHARED = "shared/"
WAITING = "waiting/"
DONE = "done/"


@dataclass(frozen=True, eq=False)
class Reply:
    """What a client sends after a job: its upload, its metrics, and, if it is at chance, its accuracy."""

    arrays: Mapping[str, np.ndarray]
    figures: Mapping[str, float]
    chance: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, reply: Message) -> Reply:
        """Return what a message says; its arrays may lie where they are only lent for a moment: copies."""
        content = reply.content
        chance: dict[str, float] = {}
        if msg.AT_CHANCE in content:
            told = content.config_records[msg.AT_CHANCE]
            chance = {name: float(value) for name, value in told.items()}  # type: ignore[arg-type]
        sent = from_record(content.array_records[msg.ARRAYS])
        return cls({name: np.array(values) for name, values in sent.items()}, metrics_of(reply), chance)

    @property
    def size(self) -> int:
        """Bytes of the upload."""
        return sum(values.nbytes for values in self.arrays.values())

    @property
    def samples(self) -> int:
        """The client's training samples."""
        return int(self.figures[msg.NUM_EXAMPLES])

    def message(self, client: int, node: int) -> Message:
        """Return the message that says this."""
        figures: dict[str, Any] = {**self.figures, msg.NUM_EXAMPLES: self.samples}
        content = RecordDict(
            {
                msg.IDENTITY: msg.identity(client),
                msg.ARRAYS: to_record(self.arrays),
                msg.METRICS: MetricRecord(figures),
            }
        )
        if self.chance:
            content[msg.AT_CHANCE] = ConfigRecord(dict(self.chance))
        return Message(content, reply_to=Message(RecordDict(), node, msg.TRAIN))

    def state(self) -> dict[str, np.ndarray]:
        """Return it as arrays."""
        arrays = under("arrays/", self.arrays)
        for name, table in (("figures/", self.figures), ("chance/", self.chance)):
            arrays |= under(name, {key: np.array(value, dtype=np.float64) for key, value in table.items()})
        return arrays

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray]) -> Reply:
        """Return the reply that a `state` is of."""
        figures, chance = (
            {key: float(value) for key, value in below(name, arrays).items()}
            for name in ("figures/", "chance/")
        )
        return cls(below("arrays/", arrays), figures, chance)


class HeldMessages:
    """What lies between a server that waits for nobody and its clients, by client.

    Attributes:
        waiting: Messages to clients that have not been sent yet.
        done: Replies of clients that have yet to arrive.
    """

    def __init__(self) -> None:
        self.waiting: dict[int, Message] = {}
        self.done: dict[int, Reply] = {}

    def state(self) -> dict[str, np.ndarray]:
        """Return all of it; what several messages bring along is there once."""
        arrays: dict[str, np.ndarray] = {}
        place_of: dict[int, int] = {}
        for client, message in sorted(self.waiting.items()):
            own = f"{WAITING}{client}/"
            config = message.content.config_records[msg.CONFIG]
            arrays |= under(f"{own}config/", {name: np.array(value) for name, value in config.items()})
            for name, record in message.content.array_records.items():
                if id(record) not in place_of:
                    place_of[id(record)] = len(place_of)
                    arrays |= under(f"{SHARED}{place_of[id(record)]}/", from_record(record))
                arrays[f"{own}records/{name}"] = np.array(place_of[id(record)], dtype=np.int64)
        for client, reply in sorted(self.done.items()):
            arrays |= under(f"{DONE}{client}/", reply.state())
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray], node_of_client: Mapping[int, int]) -> None:
        """Continue from a `state`."""
        records: dict[int, ArrayRecord] = {
            place: to_record(own) for place, own in by_number(below(SHARED, arrays)).items()
        }
        self.waiting = {}
        for client, own in by_number(below(WAITING, arrays)).items():
            config = {name: value.item() for name, value in below("config/", own).items()}
            content = RecordDict({msg.CONFIG: ConfigRecord(config)})
            for name, place in below("records/", own).items():
                content[name] = records[int(place)]
            group = str(config[msg.SERVER_ROUND])
            self.waiting[client] = Message(content, node_of_client[client], msg.TRAIN, group_id=group)
        done = by_number(below(DONE, arrays))
        self.done = {client: Reply.restored(own) for client, own in done.items()}


def is_kept(name: str) -> bool:
    """Return whether an array of a `state` is one that nobody writes into, there from round to round."""
    return name.startswith((SHARED, DONE))
