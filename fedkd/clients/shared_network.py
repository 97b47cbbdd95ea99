"""A network in which clients of a process work in turn, and what they have measured of the same weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from torch import nn

T = TypeVar("T")


class Measured:
    """What clients of a process have measured that depends on nothing but weights that all of them have."""

    def __init__(self) -> None:
        self._round = -1
        self._measured: dict[Hashable, Any] = {}

    def once(self, round: int, what: Hashable, measure: Callable[[], T]) -> T:
        """Return what some client has measured in this round, or else measure it.

        Args:
            measure: Measures it, of weights that all clients have.
        """
        if round != self._round:
            self.forget()
            self._round = round
        if what not in self._measured:
            self._measured[what] = measure()
        return cast("T", self._measured[what])

    def forget(self) -> None:
        """Forget what was measured: the weights will be others."""
        self._round = -1
        self._measured.clear()


class SharedModel:
    """A model in which clients of a process work in turn, as where every message brings weights along.

    As all of them evaluate the same weights, whatever depends on nothing else is measured once a round.

    Args:
        measured: What was measured; several models of which clients evaluate the same weights have one.
    """

    def __init__(self, network: nn.Module, measured: Measured | None = None) -> None:
        self.network = network
        self.measured = measured or Measured()
