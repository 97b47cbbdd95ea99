"""Base of the engines' grids: a Flower `Grid` over numbered clients that tells of replies as they come."""

from __future__ import annotations

import traceback
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedkd.errors import described
from fedkd.federation import messages as msg
from fedkd.federation.compat import RUN_ID, Run, client_of, give_id, node_id_of
from fedkd.plugins import contained

OnReply = Callable[[int, int], None]
OnAnswer = Callable[[Message], None]


class EngineGrid(Grid):
    """A Flower grid over `num_clients` numbered clients.

    Attributes:
        on_answer: Called with every reply when it arrives, before `on_reply`.
        on_reply: Called with (replies so far, messages sent) whenever a reply arrives.
    """

    def __init__(self, num_clients: int) -> None:
        self._run = Run.create_empty(RUN_ID)
        self._node_ids = [node_id_of(client) for client in range(num_clients)]
        self._replies: dict[str, Message] = {}
        self.on_answer: OnAnswer | None = None
        self.on_reply: OnReply | None = None

    @abstractmethod
    def _execute(self, messages: list[Message]) -> Iterator[Message]:
        """Yield the reply to each message, in the order in which they finish."""

    @abstractmethod
    def close(self) -> None:
        """Release what the grid holds; it cannot be used afterwards."""

    @property
    def node_of_client(self) -> dict[int, int]:
        """The node id of every client, in client order: nobody has to be asked."""
        return dict(enumerate(self._node_ids))

    def set_run(self, run: Run) -> None:
        """Set the run this grid operates in."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid operates in."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message to one node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return every client's node id, in client order."""
        return list(self._node_ids)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have the messages handled; return their ids for `pull_messages`."""
        batch = list(messages)
        for reply in self._exchange(batch):
            self._replies[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in batch]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to the messages with these ids; each is handed out once."""
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send the messages and return all replies, in client order whatever finished first.

        Clients are simulated here and always answer, so `timeout` is not needed and not used.
        """
        return sorted(self._exchange(list(messages)), key=lambda reply: reply.metadata.src_node_id)

    def _exchange(self, messages: list[Message]) -> Iterator[Message]:
        for message in messages:
            give_id(message)
        for done, reply in enumerate(self._execute(messages), start=1):
            if self.on_answer is not None:
                self.on_answer(reply)
            if self.on_reply is not None:
                self.on_reply(done, len(messages))
            yield reply


def answer(work: Callable[[Message, int], Message], message: Message, client: int) -> Message:
    """Let a client handle a message; an exception becomes an error reply, as on Flower's runtimes."""
    try:
        # What leaves the range of floats is told by who checks what was made, not by NumPy, in passing.
        with contained(), np.errstate(all="ignore"):
            return work(message, client)
    except Exception as error:
        return error_reply(message, error)


def error_reply(message: Message, error: Exception) -> Message:
    """Return the reply of a client that raised; its reason names the exception, then gives the traceback."""
    reason = f"{described(error)}\n{''.join(traceback.format_exception(error))}"
    # What travels is UTF-8, which half a surrogate pair is not.
    reason = reason.encode(errors="backslashreplace").decode()
    return Message(Error(code=msg.CLIENT_RAISED, reason=reason), reply_to=message)


class Blocks:
    """Blocks of clients that train together: messages of one kind to a block are handed over at once."""

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
