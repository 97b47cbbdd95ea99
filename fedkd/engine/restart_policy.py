"""When a run that has lost actors begins again from its last checkpoint, and when it ends."""

from __future__ import annotations

from fedkd.errors import ActorsLost


class RestartPolicy:
    """Counts what a run has lost since its last checkpoint, and decides.

    Rounds repeat themselves to the byte, so a run may go back as often as it gets further in between. It
    ends after `limit` losses from one checkpoint, or when a client took its process down twice in one round.

    Args:
        limit: How often a run begins again from one checkpoint.
        tolerant: Whether the run goes on without clients that die (see `Faults.on_client_error`). Then only
            the loss of a node makes it begin again.
    """

    def __init__(self, limit: int, *, tolerant: bool = False) -> None:
        self._limit = limit
        self._tolerant = tolerant
        self._saved: int | None = None
        self._count = 0
        self._blamed: tuple[int, int | None] | None = None

    def record(self, loss: ActorsLost, saved: int) -> ActorsLost | None:
        """Count a loss; return the error that the run ends with, or None where it begins again.

        Args:
            loss: What was lost.
            saved: Round of the last checkpoint; 0 before there is one.
        """
        if saved != self._saved:
            self._saved, self._count = saved, 0
        self._count += 1
        blamed = None if loss.client is None else (loss.client, loss.round)
        again = blamed is not None and blamed == self._blamed
        self._blamed = blamed
        if self._tolerant and blamed is not None:
            return loss
        if again:
            return _because(loss, f"as it did before the run went back to {restart_point(saved)}")
        if self._count > self._limit:
            if self._limit == 0:
                return loss
            times = "once" if self._limit == 1 else f"{self._limit} times"
            return _because(
                loss, f"the run has gone back to {restart_point(saved)} {times} (engine.restarts)"
            )
        return None

    @property
    def count(self) -> str:
        """The number of this loss, and the limit: "1 of 3"."""
        return f"{self._count} of {self._limit}"


def restart_point(saved: int) -> str:
    """Return in words where a run begins again, given the round of its last checkpoint; 0: there is none."""
    return f"the checkpoint of round {saved}" if saved else "its beginning"


def _because(loss: ActorsLost, why: str) -> ActorsLost:
    return ActorsLost(f"{loss.message}; {why}", client=loss.client, round=loss.round)
