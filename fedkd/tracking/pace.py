"""How long the rest of a run will take."""

from __future__ import annotations

from collections import deque
from statistics import fmean


class Pace:
    """Estimates the time left from the last rounds, so that a slow first round is soon forgotten.

    Args:
        window: Number of rounds that the estimate looks back on.
    """

    def __init__(self, window: int = 5) -> None:
        self._seconds: deque[float] = deque(maxlen=window)

    def add(self, seconds: float) -> None:
        """Take note of a finished round."""
        self._seconds.append(seconds)

    def left(self, rounds: int, elapsed: float = 0.0) -> float | None:
        """Return the seconds that `rounds` more rounds take; None: no round is finished yet.

        Args:
            rounds: Rounds to go, the one under way included.
            elapsed: Seconds that the round under way has taken so far.
        """
        if not self._seconds:
            return None
        a_round = fmean(self._seconds)
        return max(0.0, a_round * rounds - min(elapsed, a_round))
