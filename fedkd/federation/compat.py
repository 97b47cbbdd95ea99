"""Private names of Flower 1.39 to 1.42 (see `scripts/test-flwr.sh`), and the engines' node ids.

A `flwr.app.Message` needs the running task's identity and an id, which Flower's runtimes set themselves.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from flwr.app import Message, RecordDict
from flwr.serverapp.strategy.strategy_utils import sample_nodes as sample_nodes
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1
SERVER_NODE_ID = 1


def assume_identity() -> None:
    """Make this process a task that may build Flower messages."""
    TaskIdentity.run_id = RUN_ID
    TaskIdentity.task_id = 1
    TaskIdentity.node_id = SERVER_NODE_ID


@contextmanager
def flower_logs_from(level: int) -> Iterator[None]:
    """Let Flower log from this level on while the block runs."""
    logger = logging.getLogger("flwr")
    former = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(former)


def assign_message_id(message: Message) -> None:
    """Give a message an id before it is sent, which its reply names."""
    message.metadata.__dict__["_message_id"] = uuid4().hex


def replace_content(message: Message, content: RecordDict) -> Message:
    """Return a copy of a message with the same id and other content."""
    copied = Message.__new__(Message)
    copied.__dict__.update(message.__dict__, _content=content)
    return copied


def node_id_of(client: int) -> int:
    """Return the node id of a client on fedkd's engines: the server is node 1, client 0 is node 2."""
    return client + SERVER_NODE_ID + 1


def client_of_node(node_id: int) -> int:
    return node_id - SERVER_NODE_ID - 1
