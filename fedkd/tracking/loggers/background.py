"""Run a logger in its own thread; only the end of the run waits for it."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedkd.errors import Interrupted, one_line
from fedkd.scenario import Scenario, make_paths_relative
from fedkd.tracking.events import RoundReport, RunObserver, RunReport
from fedkd.tracking.loggers.figures import FigureMaker
from fedkd.tracking.loggers.logger import Ending, LoggedRun, Logger
from fedkd.tracking.recorder import METRICS_FILE

log = logging.getLogger("fedkd.tracking")

MOST_WAITING = 1000  # rounds that wait for a logger; further rounds are dropped
PATIENCE = 60.0  # seconds that a finished run waits for a logger
Work = Callable[[], None]


class BackgroundLogger(RunObserver):
    """Run a logger in another thread and keep its failures away from the run.

    The first failure switches the logger off. Its messages reach `tell` with the next hook, so displays need
    no locks. Pictures are logged every `pictures_every` rounds (0: never). The end of the run waits for the
    logger for at most `patience` seconds.
    """

    def __init__(
        self,
        name: str,
        logger: Logger,
        pictures_every: int,
        tell: Callable[[str], None] = log.warning,
        patience: float = PATIENCE,
    ) -> None:
        self._name, self._logger, self._pictures_every = name, logger, pictures_every
        self._tell, self._patience = tell, patience
        self._waiting: queue.Queue[Work | None] = queue.Queue(MOST_WAITING)
        self._told: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failed = threading.Event()
        self._maker: FigureMaker  # created in the logger's thread
        self._folder = Path()
        self._read = 0  # bytes of `metrics.jsonl` before this round
        self._last = self._rounds = self._left_out = 0
        self._ending: Ending | None = None

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        self._folder, self._last, self._rounds = folder, resumed_from, scenario.last_round
        self._read = self._recorded()
        run = LoggedRun(make_paths_relative(scenario, folder), folder, resumed_from, self._told.put)

        def begin() -> None:
            self._maker = FigureMaker(scenario, folder, resumed_from, self._pictures_every)
            self._logger.open(run)

        self._thread = threading.Thread(target=self._work, name=f"fedkd-{self._name}", daemon=True)
        self._thread.start()
        self._hand_over(begin)

    def round_finished(self, report: RoundReport) -> None:
        span, self._read = (self._read, self._recorded()), self._recorded()
        if report.round > self._last:  # else the run went back and repeats a round
            self._last = report.round
            if not self._hand_over(lambda: self._logger.log(self._maker.figures(report, span))):
                self._left_out += 1
        self._pass_on()

    def went_back(self, scenario: Scenario, folder: Path, done: int) -> None:
        self._read = self._recorded()

    def run_finished(self, report: RunReport) -> None:
        self._end(Ending("done", self._rounds, dict(report.summary)))
        self._pass_on()

    def failed(self, error: BaseException) -> None:
        interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
        self._end(Ending("interrupted" if interrupted else "failed", self._last))

    def closed(self) -> None:
        if self._thread is None:
            return
        self._end(Ending("interrupted", self._last))
        thread, self._thread = self._thread, None
        thread.join(self._patience)
        self._pass_on()
        if thread.is_alive():
            self._tell(f"{self._name} is still writing after {self._patience:g} s; the run ends without it")
        elif self._left_out and not self._failed.is_set():
            self._tell(f"{self._name} was too slow: {self._left_out} rounds were not logged")

    # In the run's thread

    def _recorded(self) -> int:
        path = self._folder / METRICS_FILE
        return path.stat().st_size if path.exists() else 0

    def _hand_over(self, work: Work) -> bool:
        """Queue work for the logger's thread; return False if the queue is full."""
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            return False
        return True

    def _end(self, ending: Ending) -> None:
        """Close the logger once, after all queued work."""
        if self._ending is not None or self._thread is None:
            return
        self._ending = ending
        deadline = time.monotonic() + self._patience
        for work in (lambda: self._logger.close(ending), None):
            while self._thread.is_alive() and time.monotonic() < deadline:
                with suppress(queue.Full):
                    self._waiting.put(work, timeout=0.2)
                    break

    def _pass_on(self) -> None:
        while not self._told.empty():
            self._tell(self._told.get())

    # In the logger's thread

    def _work(self) -> None:
        while (work := self._waiting.get()) is not None:
            if self._failed.is_set():
                continue
            try:
                work()
            except Exception as error:
                self._failed.set()
                self._told.put(
                    f"{self._name} is switched off, the run continues: {described_in_a_line(error)}"
                )


def described_in_a_line(error: Exception) -> str:
    """Return the type and message of an error in one line."""
    text = " ".join(str(error).split())
    return one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__)
