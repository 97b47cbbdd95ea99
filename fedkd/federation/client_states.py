"""Clients' states on their way to a checkpoint and back, as many at a time as there is room for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from flwr.app import Message, RecordDict

from fedkd.clients.memory import STATES_AT_ONCE
from fedkd.federation import messages as msg
from fedkd.federation.arrays import from_record, to_record
from fedkd.federation.messenger import Messenger
from fedkd.federation.saved_arrays import Arrays


def fetched(messenger: Messenger, round: int, clients: Iterable[int]) -> Iterator[dict[int, Arrays]]:
    """Yield the states of clients, in client order, portion by portion."""
    for portion in _portions(sorted(clients)):
        nodes = [messenger.node_of_client[client] for client in portion]
        sent = [Message(RecordDict(), node, msg.EXPORT_STATE) for node in nodes]
        yield {
            client: from_record(reply.content.array_records[msg.STATE])
            for client, reply in messenger.send(round, "save", sent).items()
        }


def hand_back(messenger: Messenger, round: int, states: Mapping[int, Arrays]) -> None:
    """Make clients what they were; of a checkpoint's states those of one portion are read at a time."""
    for portion in _portions(sorted(states)):
        sent = [
            Message(
                RecordDict({msg.STATE: to_record(states[client])}),
                messenger.node_of_client[client],
                msg.IMPORT_STATE,
            )
            for client in portion
        ]
        messenger.send(round, "restore", sent)


def _portions(clients: Sequence[int]) -> list[Sequence[int]]:
    """Return clients in portions whose states there is room for at once."""
    return [clients[start : start + STATES_AT_ONCE] for start in range(0, len(clients), STATES_AT_ONCE)]
