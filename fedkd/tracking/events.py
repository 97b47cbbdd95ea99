"""Events of a run for observers: the progress display, loggers, a user's own observer."""

import logging
import resource
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from typing import Any, Self

from fedkd.scenario import Scenario

log = logging.getLogger("fedkd.tracking")


@dataclass(frozen=True)
class RoundReport:
    """One finished round, averaged over the federation; unmeasured values are None."""

    round: int
    """Number of the round, from 1."""
    rounds: int
    """Rounds of the whole run."""
    accuracy_local: float | None = None
    """Mean over clients, in [0, 1]."""
    accuracy_global: float | None = None
    """Mean over clients, in [0, 1]."""
    accuracy_before_fusion_local: float | None = None
    """The same before fusion, after local training."""
    accuracy_before_fusion_global: float | None = None
    """The same before fusion, after local training."""
    fusion_gain: float | None = None
    """Mean accuracy after fusion minus before, over the round's clients, in [-1, 1]. In regression,
    improvement of the metric in its unit."""
    effective_neighbours: float | None = None
    """Mean effective number of clients that a client learned from."""
    train_loss: float | None = None
    """Mean over clients of the local training loss."""
    bytes_up: int = 0
    """Payload from clients in this round, to the server or over a graph to each other."""
    bytes_down: int = 0
    """Payload to clients in this round."""
    seconds: float = 0.0
    """Wall-clock time of the round."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """All other federation means by `split/metric`, e.g. `"local/loss"`. Those of one task of a stream are
    named `metric/split/task`, e.g. `"accuracy_task_incremental/global/3"`."""
    task: int | None = None
    """Task of the round, from 0; None without a stream."""
    metric: str = "accuracy"
    """Metric that tables show; in regression its means are among `metrics`, and there is no accuracy."""


@dataclass(frozen=True)
class Totals:
    """Costs of a run so far."""

    bytes_up: int = 0  # payload from clients, to the server or over a graph to each other
    bytes_down: int = 0  # payload to clients, without evaluations
    evaluation_bytes: int = 0  # payload to clients for evaluations only
    seconds: float = 0.0  # wall-clock time of all rounds
    virtual_seconds: float = 0.0  # simulated time of all rounds, with `[clock]`


def peak_memory_mb() -> float:
    """Return the peak memory of this process, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


@dataclass(frozen=True)
class RunReport:
    """A finished run."""

    folder: Path
    """The run folder."""
    summary: Mapping[str, Any]
    """Content of `summary.json`."""


class RunObserver:
    """Base of observers, which watch a run without changing it.

    Every hook does nothing by default. As a context manager an observer calls `closed` at the end.
    """

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        """The run begins; `resumed_from` is the last finished round, 0 for a new run."""

    def went_back(self, scenario: Scenario, folder: Path, done: int) -> None:
        """The run continues after round `done` (0: from its start); later rounds are repeated."""

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        """In `round`, `done` of `total` clients have finished `phase` (`"train"`, `"evaluate"`, …).

        A phase without a count of clients has a `total` of 0 or 1.
        """

    def answered(self, round: int, phase: str, client: int, seconds: float) -> None:
        """`client` finished `phase` of `round` after `seconds` of work; `phase` is called next."""

    def round_finished(self, report: RoundReport) -> None:
        """A round is over."""

    def run_finished(self, report: RunReport) -> None:
        """The last round is over and `summary.json` is written; a failed run does not call this."""

    def message(self, text: str) -> None:
        """A line for the user."""

    def failed(self, error: BaseException) -> None:
        """An error or an interrupt ends the run early; `closed` is called next."""

    def closed(self) -> None:
        """Release the terminal, files and connections; the last hook. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self.failed(error)
        self.closed()


class Observers(RunObserver):
    """Call several observers in order and keep their failures away from the run.

    An observer that raises is closed and dropped, with one warning in the log. `KeyboardInterrupt` and
    `SystemExit` pass through to the run. The display comes first, as others may print through it.
    """

    def __init__(self, observers: Iterable[RunObserver]) -> None:
        self._observers = list(observers)

    def __len__(self) -> int:
        return len(self._observers)

    def _tell(self, hook: str, *told: Any) -> None:
        for observer in list(self._observers):
            try:
                getattr(observer, hook)(*told)
            except Exception as error:
                self._observers.remove(observer)
                with suppress(Exception):
                    observer.closed()
                name = type(observer).__name__
                log.warning("%s failed and is switched off: %s: %s", name, type(error).__name__, error)


HOOKS = tuple(name for name in vars(RunObserver) if not name.startswith("_"))
for _hook in HOOKS:
    setattr(Observers, _hook, partialmethod(Observers._tell, _hook))
