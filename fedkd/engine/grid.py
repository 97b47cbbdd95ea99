"""Base of the engines' grids: a Flower `Grid` over numbered clients."""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedkd.errors import described
from fedkd.federation import RUN_ID, Run, assign_message_id, client_of_node, node_id_of
from fedkd.federation.messages import records as msg
from fedkd.plugins import contain_plugin

OnReply = Callable[[int, int], None]
OnAnswer = Callable[[Message], None]


class EngineGrid(Grid):
    """A Flower grid over numbered clients; replies go to `on_answer`, their count and total to `on_reply`."""

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
        """Release the grid's resources; it cannot be used afterwards."""

    @property
    def node_of_client(self) -> dict[int, int]:
        return dict(enumerate(self._node_ids))

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._node_ids)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Handle the messages; return their ids for `pull_messages`."""
        batch = list(messages)
        for reply in self._exchange(batch):
            self._replies[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in batch]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to the messages with these ids, each once."""
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Return all replies in client order; `timeout` is ignored, as simulated clients always answer."""
        return sorted(self._exchange(list(messages)), key=lambda reply: reply.metadata.src_node_id)

    def _exchange(self, messages: list[Message]) -> Iterator[Message]:
        for message in messages:
            assign_message_id(message)
        for done, reply in enumerate(self._execute(messages), start=1):
            if self.on_answer is not None:
                self.on_answer(reply)
            if self.on_reply is not None:
                self.on_reply(done, len(messages))
            yield reply


def answer(work: Callable[[Message, int], Message], message: Message, client: int) -> Message:
    """Handle a client's message; an exception becomes an error reply, as in Flower."""
    try:
        # Later checks report numbers out of range, not NumPy.
        with contain_plugin(), np.errstate(all="ignore"):
            return work(message, client)
    except Exception as error:
        return error_reply(message, error)


def error_reply(message: Message, error: Exception) -> Message:
    """Return the reply of a client that raised: the exception's name, then the traceback."""
    reason = f"{described(error)}\n{''.join(traceback.format_exception(error))}"
    # Messages are UTF-8, which cannot encode half a surrogate pair.
    reason = reason.encode(errors="backslashreplace").decode()
    return Message(Error(code=msg.CLIENT_RAISED, reason=reason), reply_to=message)


class Blocks:
    """Blocks of clients that train together: one call handles messages of one kind to a block."""

    def __init__(self, blocks: Sequence[Sequence[int]]) -> None:
        self._blocks = [tuple(block) for block in blocks]
        self._of = {client: number for number, block in enumerate(self._blocks) for client in block}

    @classmethod
    def alone(cls, clients: int) -> Blocks:
        return cls([[client] for client in range(clients)])

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return iter(self._blocks)

    def of(self, message: Message) -> int:
        """Return the number of the block of a message's client."""
        return self._of[client_of_node(message.metadata.dst_node_id)]

    def split(self, messages: Sequence[Message]) -> list[list[Message]]:
        """Split messages of one kind by block, in client order, at each block's first message."""
        together: dict[tuple[object, ...], list[Message]] = {}
        for number, message in enumerate(messages):
            kind = message.metadata.message_type
            key = (self.of(message), kind) if kind in msg.MAY_TRAIN else (number,)
            together.setdefault(key, []).append(message)
        return [sorted(own, key=lambda message: message.metadata.dst_node_id) for own in together.values()]


TRIM_THRESHOLD_BYTES = 128 * 2**20
"""Free memory kept at the heap's end."""
MMAP_THRESHOLD_BYTES = 32 * 2**20
"""Least size of pieces mapped by themselves: glibc's maximum."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Keep some freed memory in this process; return whether it does.

    glibc returns memory at the heap's end. A step of a few dozen images needs it again at once, and new pages
    take up to a quarter of its time. Settings from outside stay. Nothing changes without glibc.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)) and bool(
        mallopt(_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    )
