"""What the loop of rounds asks of a server's strategy, whatever kind it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from fedkd.fusion.forms import Unfit
from fedkd.server.fusing import FusionReport, Links


class ServerStrategy(Protocol):
    """Decides what clients are sent, and makes something of what they send back.

    `KnowledgeFusion` fuses knowledge, `FlowerAveraging` has one of Flower's strategies average weights. The
    latter inherits what it has no part in.
    """

    def introduce(self, node_of_client: Mapping[int, int]) -> None:
        """Say which node simulates each client."""
        return None

    def begin_round(self, task_of: Mapping[int, int]) -> None:
        """Say which task of a stream every client is at from now on; 0 for all without one."""

    def train_messages(self, round: int, config: ConfigRecord, nodes: Grid) -> list[Message]:
        """Return the messages that have the nodes train, with what waits for them."""

    def evaluate_messages(self, round: int, config: ConfigRecord, nodes: Grid) -> list[Message]:
        """Return the messages that have the nodes evaluate, with what waits for them."""

    def end_task_messages(self, round: int, config: ConfigRecord, nodes: Grid) -> list[Message]:
        """Return the messages that have the nodes end their task, with what waits for them."""

    def end_task(self, round: int, replies: Sequence[Message]) -> Mapping[str, float]:
        """Take what clients say as they end their task; return figures of the server's own, by metric name.

        Args:
            replies: Of those whose task is over, in client order.
        """
        return {}

    def finish_messages(self, round: int, config: ConfigRecord, nodes: Grid) -> list[Message]:
        """Return the messages that have the nodes train once more and evaluate, with what waits for them."""

    def take_back(self, messages: Sequence[Message]) -> None:
        """Keep what waited for clients for their next message: these were sent, and had no effect."""
        return None

    def sent_bytes(self) -> int:
        """Return the payload that the method has sent to clients since this was last asked.

        It is what would be sent if nobody were evaluated.
        """

    def misfits(self, replies: Sequence[Message]) -> Mapping[int, Unfit]:
        """Return why uploads are refused, by client; they wait to be fused otherwise.

        Args:
            replies: To a training, without errors, in client order.
        """

    def fuse(self, round: int, replies: Sequence[Message]) -> None:
        """Make something of what clients sent after training.

        Args:
            replies: Without errors, in client order.
        """

    def cache_bytes(self) -> int | None:
        """Return the bytes of the knowledge cache; None: there is none."""
        return None

    def report(self) -> FusionReport | None:
        """Return who learned from whom in the last fusion; None: everybody receives the same."""
        return None

    def links(self) -> Links | None:
        """Return who sent what to whom in the last fusion; None: clients speak to a server."""
        return None

    def state(self) -> dict[str, np.ndarray]:
        """Return all that a later round depends on."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`."""
