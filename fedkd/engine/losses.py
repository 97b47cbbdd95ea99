"""When a run that has lost actors begins again from its last checkpoint, and when it is over."""

from __future__ import annotations

from fedkd.errors import ActorsLost


class Losses:
    """Keeps count of what a run has lost since its last checkpoint.

    Rounds are bytes that repeat themselves, so a run may go back as often as it gets further in between. It
    is over where it does not: after `limit` losses from one checkpoint, or when a client has taken its
    process down twice in the same round.

    Args:
        limit: How often a run begins again from one checkpoint.
        tolerant: Whether a client that dies is dealt with otherwise, so that its death is no accident once
            it is told of (see `Faults.on_client_error`): only the loss of a node is made up for.
    """

    def __init__(self, limit: int, *, tolerant: bool = False) -> None:
        self._limit = limit
        self._tolerant = tolerant
        self._saved: int | None = None
        self._suffered = 0
        self._blamed: tuple[int, int | None] | None = None

    def suffer(self, loss: ActorsLost, saved: int) -> ActorsLost | None:
        """Take down a loss; return the error that the run ends with, or None where it begins again.

        Args:
            loss: What was lost.
            saved: Round of the last checkpoint; 0 before there is one.
        """
        if saved != self._saved:
            self._saved, self._suffered = saved, 0
        self._suffered += 1
        blamed = None if loss.client is None else (loss.client, loss.round)
        again = blamed is not None and blamed == self._blamed
        self._blamed = blamed
        if self._tolerant and blamed is not None:
            return loss
        if again:
            return _because(loss, f"as it did before the run went back to {place(saved)}")
        if self._suffered > self._limit:
            if self._limit == 0:
                return loss
            times = "once" if self._limit == 1 else f"{self._limit} times"
            return _because(loss, f"the run has gone back to {place(saved)} {times} (engine.restarts)")
        return None

    @property
    def count(self) -> str:
        """Which one this is, of how many, for whoever reads along."""
        return f"{self._suffered} of {self._limit}"


def place(saved: int) -> str:
    """Return where a run goes on from, given the round of its last checkpoint; 0: there is none."""
    return f"the checkpoint of round {saved}" if saved else "its beginning"


def _because(loss: ActorsLost, why: str) -> ActorsLost:
    return ActorsLost(f"{loss.message}; {why}", client=loss.client, round=loss.round)
