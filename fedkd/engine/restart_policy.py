"""When a run that has lost actors restarts from its last checkpoint, and when it ends."""

from __future__ import annotations

from fedkd.errors import ActorsLost


class RestartPolicy:
    """Counts losses since the last checkpoint, and decides.

    Rounds repeat to the byte, so a run may restart as long as it makes progress in between. It ends after
    `limit` losses from one checkpoint, or when a client has lost its process twice in one round.

    Args:
        limit: Most restarts from one checkpoint.
        tolerant: Whether the run skips clients that die (see `Faults.on_client_error`). Then it restarts only
            after the loss of a node.
    """

    def __init__(self, limit: int, *, tolerant: bool = False) -> None:
        self._limit = limit
        self._tolerant = tolerant
        self._saved: int | None = None
        self._count = 0
        self._blamed: tuple[int, int | None] | None = None

    def record(self, loss: ActorsLost, saved: int) -> ActorsLost | None:
        """Count a loss; return the error that ends the run, or None for a restart.

        `saved` is the round of the last checkpoint; 0: there is none.
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
        """Number of this loss and the limit: "1 of 3"."""
        return f"{self._count} of {self._limit}"


def restart_point(saved: int) -> str:
    """Return in words where a run restarts, by its last checkpoint's round; 0: there is none."""
    return f"the checkpoint of round {saved}" if saved else "its beginning"


def _because(loss: ActorsLost, why: str) -> ActorsLost:
    return ActorsLost(f"{loss.message}; {why}", client=loss.client, round=loss.round)
