"""The state of a run that displays share: rounds, the phase under way, its slowest client, the pace."""

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
from fedkd.tracking.wording import duration, phase_text, time_left


@dataclass(frozen=True)
class Slowest:
    """The client whose work has taken longest in the present phase."""

    client: int
    seconds: float


class PhaseWatch:
    """Follows the phases of a run's rounds by a clock in seconds.

    `done` of `total` clients have finished the `phase` (empty between two) of the `round` (from 0).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self.rest(0)

    def rest(self, round: int) -> None:
        """Take down that nothing of a round has begun yet."""
        self.round, self.phase, self.done, self.total = round, "", 0, 0
        self.slowest: Slowest | None = None

    def follow(self, round: int, phase: str, done: int, total: int) -> None:
        """Take down how far a phase is, as an observer is told."""
        if (round, phase) != (self.round, self.phase) or done == 0:
            self.rest(round)
            self.phase, self._began = phase, self._clock()
        self.done, self.total = done, total

    def answered(self, round: int, phase: str, client: int, seconds: float) -> None:
        longest = self.slowest is None or seconds > self.slowest.seconds
        if (round, phase) == (self.round, self.phase) and longest:
            self.slowest = Slowest(client, seconds)

    def left(self) -> float | None:
        """Return the seconds that it still takes if the rest go as fast; None: that is not known."""
        if self.total <= 1 or not 0 < self.done < self.total:
            return None
        return (self._clock() - self._began) / self.done * (self.total - self.done)

    def parts(self, *, with_left: bool) -> list[str]:
        """Return what is to be said: the phase, the slowest of several clients, perhaps the time left."""
        if not self.phase:
            return []
        parts = [phase_text(self.phase, self.done, self.total)]
        if self.slowest is not None and self.done > 1:
            parts.append(f"slowest client {self.slowest.client} ({duration(self.slowest.seconds)})")
        if with_left and (left := self.left()) is not None:
            parts.append(f"{time_left(left)} left in it")
        return parts


class Pace:
    """Estimates the time left from the last rounds, so that a slow first round is soon forgotten."""

    def __init__(self, window: int = 5) -> None:
        self._seconds: deque[float] = deque(maxlen=window)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def left(self, rounds: int, elapsed: float = 0.0) -> float | None:
        """Return the seconds that `rounds` more take; None: no round is finished yet.

        The round under way is among them, and has taken `elapsed` seconds so far.
        """
        if not self._seconds:
            return None
        a_round = fmean(self._seconds)
        return max(0.0, a_round * rounds - min(elapsed, a_round))


class FollowedRun(RunObserver):
    """Follows a run for a display."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._watch, self._pace = PhaseWatch(clock), Pace()
        self._rounds = self._clients = self._finished = 0
        self._began = clock()

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        self._rounds, self._clients = scenario.last_round, len(counted_clients(scenario))
        self._rest(resumed_from)

    def went_back(self, scenario: Scenario, folder: Path, done: int) -> None:
        self._rest(done)

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        self._watch.follow(round, phase, done, total)

    def answered(self, round: int, phase: str, client: int, seconds: float) -> None:
        self._watch.answered(round, phase, client, seconds)

    def round_finished(self, report: RoundReport) -> None:
        self._pace.add(report.seconds)
        self._rounds = report.rounds
        self._rest(report.round)

    def _rest(self, finished: int) -> None:
        self._finished, self._began = finished, self._clock()
        self._watch.rest(min(finished + 1, self._rounds))


class Display(FollowedRun):
    """Follows a run and the accuracy matrix of its stream, and tells how the run begins."""

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
        """Begin the accuracy matrix anew, with what was recorded."""
        self._matrix = main_matrix(scenario)
        if self._matrix is not None:
            self._matrix.recall(read_metrics(folder))


def opening_lines(scenario: Scenario, folder: Path, resumed_from: int) -> list[str]:
    """Return the lines that begin a run: what it is and where it goes."""
    parts = [scenario.fusion.strategy, f"{scenario.data.clients} clients"]
    if scenario.continual is not None:
        tasks = task_count(scenario)
        parts.append(f"{scenario.continual.learner} on {tasks} task{'s' * (tasks != 1)}")
    parts += [f"{scenario.rounds} round{'s' * (scenario.rounds != 1)}", f"seed {scenario.seed}"]
    lines = [f"{scenario.name}: {', '.join(parts)} → {folder}"]
    if scenario.data.validation is not None:
        lines.append("accuracies are on held-out samples (data.validation), not on test samples")
    if resumed_from:
        lines.append(f"resumed after round {resumed_from}")
    return lines
