"""Jobs of clients on the simulated clock, in asynchronous rounds."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from math import isnan, nan

import numpy as np

from fedkd.randomness import numpy_generator

JOBS = "jobs"
KEYS = "keys"
DEPARTURES = "departures"


@dataclass(frozen=True)
class ClientJob:
    """A client's work between a download and an upload.

    Attributes:
        began: Round in which it began.
        key: Round of its random draws.
        start: Second at which it starts.
        working: Seconds of work; a lower bound until it is done.
        size: Bytes of its download.
        steps: Steps of distilling the download.
        over: Second at which its upload arrives; NaN: not known yet.
    """

    client: int
    began: int
    key: int
    start: float
    working: float
    size: int
    steps: int
    over: float = nan

    @property
    def is_done(self) -> bool:
        """True if the work was done, so that `over` is known."""
        return not isnan(self.over)

    @property
    def earliest(self) -> float:
        """Time of its end, or a lower bound."""
        return self.over if self.is_done else self.start + self.working


class JobsInFlight:
    """The jobs in flight, by (time, client) of their ends: one per client, at most `concurrency`."""

    def __init__(self, clients: int, concurrency: int, seed: int) -> None:
        self._clients, self._concurrency, self._seed = clients, concurrency, seed
        self.jobs: dict[int, ClientJob] = {}
        self._held: set[int] = set()
        self._keys = np.zeros(clients, dtype=np.int64)  # of every client's last job
        self._departures = 0

    def departing(self) -> list[int]:
        """Return the idle clients that begin a job now, ascending, drawn if there are too many."""
        idle = sorted(set(range(self._clients)) - self.jobs.keys() - self._held)
        room = min(self._concurrency - len(self.jobs), len(idle))
        if room == len(idle):
            chosen = idle
        else:
            generator = numpy_generator(self._seed, "departure", round=self._departures)
            chosen = sorted(idle[int(place)] for place in generator.choice(len(idle), room, replace=False))
        self._departures += bool(chosen)
        return chosen

    def key(self, client: int, round: int) -> int:
        """Return the round of the draws of a client's next job: this round, or the next unused one."""
        return max(round, int(self._keys[client]) + 1)

    def depart(self, job: ClientJob) -> None:
        self.jobs[job.client] = job
        self._keys[job.client] = job.key

    def done(self, client: int, working: float, over: float) -> None:
        """Set the duration of a client's work, and the arrival of its upload."""
        self.jobs[client] = replace(self.jobs[client], working=working, over=over)

    def first(self) -> ClientJob | None:
        """Return the first job to end; None: an unfinished job might be first."""
        job = min(self.jobs.values(), key=lambda job: (job.earliest, job.client))
        waiting = [other.earliest for other in self.jobs.values() if not other.is_done]
        return job if job.is_done and all(job.over < earliest for earliest in waiting) else None

    def land(self, client: int, *, hold: bool) -> None:
        """End a client's job; a held client waits for `release`."""
        del self.jobs[client]
        if hold:
            self._held.add(client)

    def release(self) -> None:
        self._held.clear()

    def state(self) -> dict[str, np.ndarray]:
        rows = [astuple(job) for _, job in sorted(self.jobs.items())]
        return {
            JOBS: np.array(rows, dtype=np.float64).reshape(-1, 8),
            KEYS: self._keys.copy(),
            DEPARTURES: np.array(self._departures, dtype=np.int64),
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._keys = arrays[KEYS].astype(np.int64)
        self._departures = int(arrays[DEPARTURES])
        jobs = [
            ClientJob(int(client), int(began), int(key), start, working, int(size), int(steps), over)
            for client, began, key, start, working, size, steps, over in arrays[JOBS].tolist()
        ]
        self.jobs = {job.client: job for job in jobs}
