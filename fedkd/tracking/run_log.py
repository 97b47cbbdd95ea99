"""The run folder's `run.log`: the messages of a run with their times."""

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from fedkd.errors import FedkdError, Interrupted, described, one_line
from fedkd.scenario import Scenario
from fedkd.storage import break_hard_link
from fedkd.tracking.progress import PlainProgress

RUN_LOG = "run.log"


class RunLog(PlainProgress):
    """Appends the plain lines of a run to its file; lines wait until the folder exists."""

    def __init__(self) -> None:
        super().__init__(None)
        self._waiting: list[tuple[datetime, str]] = []
        self._file: IO[str] | None = None

    def message(self, text: str) -> None:
        now = datetime.now().astimezone()
        self._waiting += [(now, line) for line in text.splitlines() if line]
        if self._file is not None:
            lines = [f"{when:%Y-%m-%d %H:%M:%S%z}  {line}" for when, line in self._waiting]
            self._waiting.clear()
            with suppress(OSError):  # a full disk is reported by the essential files
                print(*lines, sep="\n", end="\n" * bool(lines), file=self._file, flush=True)

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        break_hard_link(folder / RUN_LOG)
        self._file = (folder / RUN_LOG).open("a", encoding="utf-8", errors="backslashreplace")
        super().run_started(scenario, folder, resumed_from)

    def failed(self, error: BaseException) -> None:
        kind = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
        told = str(error) if isinstance(error, FedkdError) else described(error)
        self.message(f"{kind}: {one_line(told)}")

    def closed(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):
                file.close()
