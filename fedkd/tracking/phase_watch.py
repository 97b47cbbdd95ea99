"""State of a run for displays: rounds, present phase, slowest client, pace."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fedkd.plan import Schedule, build_schedule, counted_clients
from fedkd.scenario import Scenario, task_count
from fedkd.tracking.events import RoundReport, RunObserver
from fedkd.tracking.recorder import read_metrics
from fedkd.tracking.task_matrix import TaskMatrix, main_matrix
from fedkd.tracking.wording import format_duration, format_time_left, phase_text


@dataclass(frozen=True)
class Slowest:
    """The slowest client of the present phase so far."""

    client: int
    seconds: float


class Pace:
    """Estimates the time left from the last `window` rounds."""

    def __init__(self, window: int = 5) -> None:
        self._seconds: deque[float] = deque(maxlen=window)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def left(self, rounds: int, elapsed: float = 0.0) -> float | None:
        """Return the seconds left of `rounds`, minus `elapsed`; None before the first finished round."""
        if not self._seconds:
            return None
        a_round = fmean(self._seconds)
        return max(0.0, a_round * rounds - min(elapsed, a_round))


class FollowedRun(RunObserver):
    """Follows a run for a display: `_done` of `_total` clients have finished `_phase` of `_round`."""

    _slowest: Slowest | None

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._pace = clock, Pace()
        self._rounds = self._clients = 0
        self._rest(0)

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        self._rounds, self._clients = scenario.last_round, len(counted_clients(scenario))
        self._rest(resumed_from)

    def went_back(self, scenario: Scenario, folder: Path, done: int) -> None:
        self._rest(done)

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        if (round, phase) != (self._round, self._phase) or done == 0:
            self._begin(round, phase)
        self._done, self._total = done, total

    def answered(self, round: int, phase: str, client: int, seconds: float) -> None:
        longest = self._slowest is None or seconds > self._slowest.seconds
        if (round, phase) == (self._round, self._phase) and longest:
            self._slowest = Slowest(client, seconds)

    def round_finished(self, report: RoundReport) -> None:
        self._pace.add(report.seconds)
        self._rounds = report.rounds
        self._rest(report.round)

    def _rest(self, finished: int) -> None:
        self._finished, self._began = finished, self._clock()
        self._begin(min(finished + 1, self._rounds))

    def _begin(self, round: int, phase: str = "") -> None:
        self._round, self._phase, self._phase_began = round, phase, self._clock()
        self._done = self._total = 0
        self._slowest = None

    def _phase_left(self) -> float | None:
        """Return the estimated seconds left of the phase, if known."""
        if self._total <= 1 or not 0 < self._done < self._total:
            return None
        return (self._clock() - self._phase_began) / self._done * (self._total - self._done)

    def _parts(self, *, with_left: bool) -> list[str]:
        """Return the words for the phase, its slowest client and the time left."""
        if not self._phase:
            return []
        parts = [phase_text(self._phase, self._done, self._total)]
        if self._slowest is not None and self._done > 1:
            parts.append(f"slowest client {self._slowest.client} ({format_duration(self._slowest.seconds)})")
        if with_left and (left := self._phase_left()) is not None:
            parts.append(f"{format_time_left(left)} left in this phase")
        return parts


class Display(FollowedRun):
    """Follows a run with its accuracy matrix, and prints its first lines."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._schedule: Schedule | None = None
        self._matrix: TaskMatrix | None = None

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        super().run_started(scenario, folder, resumed_from)
        for line in opening_lines(scenario, folder, resumed_from):
            self.message(line)
        self._schedule = build_schedule(scenario) if scenario.continual is not None else None
        self._matrix = main_matrix(scenario)

    def went_back(self, scenario: Scenario, folder: Path, done: int) -> None:
        super().went_back(scenario, folder, done)
        self._recall(scenario, folder)

    def _recall(self, scenario: Scenario, folder: Path) -> None:
        """Rebuild the accuracy matrix from the recorded metrics."""
        self._matrix = main_matrix(scenario)
        if self._matrix is not None:
            self._matrix.recall(read_metrics(folder))


def opening_lines(scenario: Scenario, folder: Path, resumed_from: int) -> list[str]:
    """Return the first lines of a run: its settings and its folder."""
    parts = [scenario.fusion.strategy, f"{scenario.data.clients} clients"]
    if scenario.continual is not None:
        tasks = task_count(scenario)
        parts.append(f"{scenario.continual.learner} on {tasks} task{'s' * (tasks != 1)}")
    parts += [f"{scenario.rounds} round{'s' * (scenario.rounds != 1)}", f"seed {scenario.seed}"]
    lines = [f"{scenario.name}: {', '.join(parts)} → {folder}"]
    if scenario.data.validation is not None:
        lines.append(
            "accuracies are measured on held-out training samples (data.validation), not on test samples"
        )
    if resumed_from:
        lines.append(f"resumed after round {resumed_from}")
    return lines
