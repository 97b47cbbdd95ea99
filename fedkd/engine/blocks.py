"""Clients that are handed their messages together, because they train together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flwr.app import Message

from fedkd.federation import messages as msg
from fedkd.federation.identity import client_of


class Blocks:
    """Blocks of clients: an engine hands the messages of one kind to those of a block over at once.

    Args:
        blocks: Clients' indices, each in one block.
    """

    def __init__(self, blocks: Sequence[Sequence[int]]) -> None:
        self._blocks = [tuple(block) for block in blocks]
        self._of = {client: number for number, block in enumerate(self._blocks) for client in block}

    @classmethod
    def alone(cls, clients: int) -> Blocks:
        """Return blocks of one."""
        return cls([[client] for client in range(clients)])

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """Yield the clients of each block."""
        return iter(self._blocks)

    def of(self, message: Message) -> int:
        """Return the number of the block of a message's client."""
        return self._of[client_of(message.metadata.dst_node_id)]

    def split(self, messages: Sequence[Message]) -> list[list[Message]]:
        """Return messages that go together: of one kind, to clients of one block, in the clients' order.

        What is no matter of training goes alone. The lists are in the order of their first messages.
        """
        together: dict[tuple[object, ...], list[Message]] = {}
        for number, message in enumerate(messages):
            kind = message.metadata.message_type
            key = (self.of(message), kind) if kind in msg.MAY_TRAIN else (number,)
            together.setdefault(key, []).append(message)
        return [sorted(own, key=lambda message: message.metadata.dst_node_id) for own in together.values()]
