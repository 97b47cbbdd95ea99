"""Child processes that end with a block, together with their descendants."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import IO

from fedkd.engine import adopt_orphans, descendant_pids, signal_on_parent_death

Word = str | int | Path
"""Part of a command."""
GRACE = 10.0
"""Seconds that a process has to end after SIGTERM."""


@dataclass(eq=False)
class Child:
    """A child process: its name, its log, and whether its end was reported."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    told: bool = False

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def how(self) -> str:
        status = self.process.returncode
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"has ended with status {status}"


class Children:
    """Start processes with logs in a folder; at its end, they and their descendants end.

    On Linux, orphans become children of this process, and the kernel ends the children with it (SIGTERM).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Child] = []
        self._others: set[int] = set()

    def __enter__(self) -> Children:
        self._others = set(descendant_pids(os.getpid()))
        adopt_orphans(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C now would leave processes running.
        former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.stop()
        finally:
            adopt_orphans(False)
            for number, handler in former.items():
                signal.signal(number, handler)

    def start(
        self, name: str, command: Sequence[Word], environment: Mapping[str, str], folder: Path
    ) -> Child:
        """Start a process in its own session; Ctrl-C reaches it through this process."""
        log = self._folder / f"{name.replace(' ', '-')}.log"
        with log.open("ab") as file:
            process = self._open(command, environment, folder, file)
        self._started.append(Child(name, process, log))
        return self._started[-1]

    def run(
        self,
        command: Sequence[Word],
        environment: Mapping[str, str],
        folder: Path,
        each: Callable[[str], None],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> int:
        """Run a process and return its status; `each` gets its lines, `meanwhile` is called every second."""
        process = self._open(command, environment, folder, subprocess.PIPE)
        self._started.append(Child(str(command[0]), process, Path(os.devnull), told=True))
        lines: Queue[bytes | None] = Queue()
        threading.Thread(target=_read_lines, args=(process, lines), daemon=True).start()
        while True:
            meanwhile()
            with suppress(Empty):
                line = lines.get(timeout=1.0)
                if line is None:
                    return process.wait()
                each(line.decode(errors="replace").rstrip("\r\n"))

    def _open(
        self, command: Sequence[Word], environment: Mapping[str, str], folder: Path, output: IO[bytes] | int
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(word) for word in command],
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(signal_on_parent_death, signal.SIGTERM),
        )

    def newly_ended(self) -> list[Child]:
        found = [child for child in self._started if not child.told and child.ended]
        for child in found:
            child.told = True
        return found

    def stop(self) -> None:
        """End all processes, the last started first, and all below them."""
        for child in reversed(self._started):
            if not child.ended:
                with suppress(ProcessLookupError):
                    child.process.terminate()
        started = {child.process.pid for child in self._started}
        deadline, asked = time.monotonic() + GRACE, set[int]()
        while (left := self._left()) and time.monotonic() < deadline:
            if not started & set(left):  # orphans
                self._signal(set(left) - asked, signal.SIGTERM)
                asked.update(left)
            time.sleep(0.05)
        while left:
            self._signal(left, signal.SIGKILL)
            time.sleep(0.05)
            left = self._left()

    @staticmethod
    def _signal(pids: Iterable[int], number: signal.Signals) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _left(self) -> list[int]:
        own = {child.process.pid for child in self._started}
        running = [child.process.pid for child in self._started if not child.ended]
        for pid in descendant_pids(os.getpid()):
            if pid in own or pid in self._others:
                continue
            with suppress(ChildProcessError):  # not ours yet: its parent still runs
                if os.waitpid(pid, os.WNOHANG)[0]:
                    continue
            running.append(pid)
        return running


def _read_lines(process: subprocess.Popen[bytes], lines: Queue[bytes | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)
