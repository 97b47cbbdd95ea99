"""Interface of a server's strategy for the loop of rounds."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from flwr.app import ConfigRecord, Message

from fedkd.fusion import InvalidUpload
from fedkd.server import FusionReport, Links


class ServerStrategy(Protocol):
    """Writes messages to clients and processes their replies: `KnowledgeFusion`, `FlowerAveraging`."""

    def introduce(self, node_of_client: Mapping[int, int]) -> None:
        """Set the node of each client."""
        return None

    def begin_round(self, task_of: Mapping[int, int]) -> None:
        """Set every client's task from now on; 0 for all without a stream."""

    def messages(self, kind: str, round: int, config: ConfigRecord, nodes: Sequence[int]) -> list[Message]:
        """Return the nodes' messages of a kind (see `messages`), with the guidance that waits for them."""

    def end_task(self, round: int, replies: Sequence[Message]) -> Mapping[str, float]:
        """Process replies to the end of a task, in client order; return the server's figures by metric."""
        return {}

    def take_back(self, messages: Sequence[Message]) -> None:
        """Keep the guidance of messages that had no effect for the clients' next ones."""
        return None

    def sent_bytes(self) -> int:
        """Return the payload sent to clients since the last call, evaluation aside."""

    def misfits(self, replies: Sequence[Message]) -> Mapping[int, InvalidUpload]:
        """Return why uploads are refused, by client; the others wait for `fuse`. Replies have no errors."""

    def fuse(self, round: int, replies: Sequence[Message]) -> None:
        """Fuse uploads; the replies have no errors and are in client order."""

    def cache_bytes(self) -> int | None:
        """Return the bytes of the knowledge cache; None: there is none."""
        return None

    def report(self) -> FusionReport | None:
        """Return the weights among clients of the last fusion; None: all receive the same."""
        return None

    def figures(self) -> Mapping[str, float]:
        """Return the figures of the last fusion by metric."""
        return {}

    def links(self) -> Links | None:
        """Return the links used in the last fusion; None: a server."""
        return None

    def state(self) -> dict[str, np.ndarray]:
        """Return the state that later rounds depend on."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`."""
