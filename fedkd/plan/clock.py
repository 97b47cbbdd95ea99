"""Simulated time of jobs and messages, drawn from the seed."""

from dataclasses import dataclass
from math import exp

from fedkd.randomness import numpy_generator
from fedkd.scenario import Clock

BITS = 8e-6  # megabits per byte


@dataclass(frozen=True)
class VirtualClock:
    """Simulated seconds of jobs and messages.

    ::

        job of client n:  f_n · seconds · {|N(0, 1)|, 1, steps}      ln f_n ~ N(0, spread²)
        its message:      latency + 8 · bytes / (g_n · bandwidth)    ln g_n ~ N(0, bandwidth_spread²)
    """

    seed: int
    settings: Clock

    def work(self, client: int, job: int, steps: int) -> float:
        """Return the time of a client's job; `job` is the round of its draws."""
        settings = self.settings
        typical = settings.seconds * self._factor("clock-speed", client, settings.spread)
        if settings.work == "drawn":
            return typical * abs(numpy_generator(self.seed, "clock-job", client=client, round=job).normal())
        return typical * steps if settings.work == "steps" else typical

    def way(self, client: int, size: int) -> float:
        """Return the time of a message of `size` bytes."""
        settings = self.settings
        if settings.bandwidth is None:
            return settings.latency
        speed = settings.bandwidth * self._factor("clock-network", client, settings.bandwidth_spread)
        return settings.latency + BITS * size / speed

    def _factor(self, purpose: str, client: int, spread: float) -> float:
        return exp(spread * numpy_generator(self.seed, purpose, client=client).normal())
