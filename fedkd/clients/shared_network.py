"""A network that clients of a process share, and measurements of its weights."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from torch import nn

T = TypeVar("T")


class Measured:
    """Measurements that depend only on the common weights of a process's clients."""

    def __init__(self) -> None:
        self._round = -1
        self._measured: dict[Hashable, Any] = {}

    def once(self, round: int, what: Hashable, measure: Callable[[], T]) -> T:
        """Return a round's measurement of this name, and measure it the first time."""
        if round != self._round:
            self.forget()
            self._round = round
        if what not in self._measured:
            self._measured[what] = measure()
        return cast("T", self._measured[what])

    def forget(self) -> None:
        """Forget all measurements: the weights change."""
        self._round = -1
        self._measured.clear()


class SharedModel:
    """A model that clients of a process share in turn if messages contain weights.

    Models with the same weights share one `measured`, so that each figure is measured once a round.
    """

    def __init__(self, network: nn.Module, measured: Measured | None = None) -> None:
        self.network = network
        self.measured = measured or Measured()
