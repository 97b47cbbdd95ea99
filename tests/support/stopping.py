"""An observer that stops its own process as a user would, by a signal, at a known moment of a run."""

from __future__ import annotations

import os
import signal

from fedkd.tracking.events import RunObserver


class StopInRound(RunObserver):
    """Sends this process a signal once the first client of a round has trained.

    Args:
        round: Which round; None: every one.
        number: The signal: by default that of Ctrl-C.
    """

    def __init__(self, round: int | None = None, number: int = signal.SIGINT) -> None:
        self._round, self._number = round, number

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        if (phase, done) == ("train", 1) and self._round in (None, round):
            os.kill(os.getpid(), self._number)
