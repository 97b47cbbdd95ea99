"""What happens in a run, told to whoever watches: the progress display, wandb, a user's own observer."""

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
    """One finished round, averaged over the federation. None: not measured in this round."""

    round: int
    """1-based."""
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
    """Mean accuracy after fusion minus before, over the clients that took part in it, in [-1, 1]."""
    effective_neighbours: float | None = None
    """Effective number of clients that a client learned from."""
    train_loss: float | None = None
    """Mean over clients of the local training loss."""
    bytes_up: int = 0
    """Payload that clients sent in this round, to the server or, without one, to each other."""
    bytes_down: int = 0
    """Payload that the method sent to clients in this round."""
    seconds: float = 0.0
    """Wall-clock time of the round."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Every other federation mean, named `split/metric`, e.g. `"local/loss"`; figures about one task of a
    stream `metric/split/task`, e.g. `"accuracy_task_incremental/global/3"`."""
    task: int | None = None
    """Task of the round, 0-based; None: no stream."""


@dataclass(frozen=True)
class Totals:
    """What has been spent so far."""

    bytes_up: int = 0  # payload that clients have sent, to the server or, without one, to each other
    bytes_down: int = 0  # payload that the method has sent to clients, evaluations left out
    evaluation_bytes: int = 0  # payload sent to clients for evaluations alone
    seconds: float = 0.0  # wall-clock time of all rounds
    virtual_seconds: float = 0.0  # simulated time of all rounds, where there is a clock


def peak_memory_mb() -> float:
    """Return the largest memory this process has used, in MB."""
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
    """Watches a run without changing it. Every hook does nothing until a subclass overrides it.

    As a context manager it calls `closed` on the way out, however the run ended.
    """

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        """Work begins; `resumed_from` is the last round that was already done, 0 for a fresh run."""

    def went_back(self, scenario: Scenario, folder: Path, done: int) -> None:
        """The run goes on from the end of round `done`, 0 its beginning: later rounds come once more."""

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        """In `round`, `done` of `total` clients have finished `phase` (`"train"`, `"evaluate"`, …).

        A phase that is not counted in clients has a `total` of 0 or 1.
        """

    def answered(self, round: int, phase: str, client: int, seconds: float) -> None:
        """`client` has finished `phase` of `round` after so many seconds of work; `phase` follows."""

    def round_finished(self, report: RoundReport) -> None:
        """A round is over."""

    def run_finished(self, report: RunReport) -> None:
        """The last round is over and `summary.json` is written. Not called if the run fails."""

    def message(self, text: str) -> None:
        """A line for the user."""

    def failed(self, error: BaseException) -> None:
        """The run ends before its last round, by an error or an interrupt; `closed` follows."""

    def closed(self) -> None:
        """No further hook follows: give back the terminal, files, connections. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self.failed(error)
        self.closed()


class Observers(RunObserver):
    """Tells several observers, in order, and keeps their failures away from the run.

    An observer that raises is closed and dropped, with one warning in the log. `KeyboardInterrupt` and
    `SystemExit` pass: they are meant for the run. The display comes first: others may speak through it.
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
