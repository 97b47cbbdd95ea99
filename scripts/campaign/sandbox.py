"""One command of fedkd in a fork of this process, in folders of its own, watched from outside."""

from __future__ import annotations

import io
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Command = Callable[[list[str]], int]
PATIENCE = 4.0
"""Seconds after which a command is asked to stop, as by Ctrl-C; twice, and then it is killed."""
WHOLE = 240.0
"""The same of a command that has to come to its end, however busy the machine is."""
MEMORY = 2 << 30
"""Bytes that a command may take on top of what it is born with."""
SPEECH = 200_000
"""Letters of what a command says that are kept."""
BROKE = 99
"""Exit status of a command that let an exception out."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        words: The command.
        status: Exit status; minus the signal that it died of.
        stdout: What it said.
        stderr: What it complained about.
        seconds: How long it took.
        asked_to_stop: Whether it was, because its time was over.
        strays: Files that it made or changed where it must not.
    """

    words: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    seconds: float = 0.0
    asked_to_stop: bool = False
    strays: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stop:
    """When a command is stopped from outside, and by which signal."""

    after: float
    signal: int = signal.SIGKILL


@dataclass
class Place:
    """Where a case lives: what it reads, where it may write, and where nothing may be written.

    Attributes:
        root: The case's own folder.
        inputs: Scenarios, data, plug-ins; nothing may be written here.
        out: Run folders; anything may be written here.
        cwd: The working folder; nothing may be written here but below ``runs``.
        home: The home folder; nothing may be written here but the cache of decoded images.
        outcomes: Of the commands so far that were left alone.
        killed: Of those that were stopped from outside.
    """

    root: Path
    outcomes: list[Outcome] = field(default_factory=list)
    killed: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inputs, self.out, self.cwd, self.home, self._temporary = (
            self.root / name for name in ("in", "out", "cwd", "home", "tmp")
        )
        for folder in (self.inputs, self.out, self.cwd, self.home, self._temporary):
            folder.mkdir(parents=True)

    def run(
        self,
        command: Command,
        words: Sequence[object],
        *,
        stop: Stop | None = None,
        file_size: int | None = None,
        patience: float | None = None,
    ) -> Outcome:
        """Run a command here and say how it ended.

        Args:
            command: Called with the words, it returns the exit status.
            words: After the command's name.
            stop: Stop it from outside.
            file_size: Bytes that a file may grow to, as on a full disk; absent: any.
            patience: Seconds after which it is asked to stop; absent: a few, as some cases never end.
        """
        told = [str(word) for word in words]
        before = self._files()
        started = time.perf_counter()
        signals = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until the child is set up for them
        pid = os.fork()
        if not pid:
            self._be(command, told, file_size)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        status, asked = _wait(pid, stop, PATIENCE if patience is None else patience)
        seconds = time.perf_counter() - started
        after = self._files()
        strays = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        outcome = Outcome(
            tuple(told), status, self._said("stdout"), self._said("stderr"), seconds, asked, tuple(strays)
        )
        self.outcomes.append(outcome)
        return outcome

    def _be(self, command: Command, words: list[str], file_size: int | None) -> None:
        """Be the command, in the child."""
        status = BROKE
        try:
            os.setsid()
            for descriptor, name in enumerate(("stdout", "stderr"), start=1):
                os.dup2(os.open(self.root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdin = os.fdopen(0, closefd=False)
            out, err = (os.fdopen(descriptor, "wb", 0, closefd=False) for descriptor in (1, 2))
            sys.stdout = io.TextIOWrapper(out, "utf-8", write_through=True)
            sys.stderr = io.TextIOWrapper(err, "utf-8", "backslashreplace", write_through=True)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _limit(file_size)
            os.chdir(self.cwd)
            os.environ |= {
                "HOME": str(self.home),
                "XDG_CACHE_HOME": str(self.home / ".cache"),
                "TMPDIR": str(self._temporary),
                "FEDKD_DATA": str(self.home / "data"),
                "http_proxy": "http://127.0.0.1:9",
                "https_proxy": "http://127.0.0.1:9",
                "no_proxy": "",
            }
            tempfile.tempdir = None
            warnings.resetwarnings()
            warnings.filterwarnings("default", module="__main__")
            for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.filterwarnings("ignore", category=category)
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
                status = command(words)
            except SystemExit as leaving:
                status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
            sys.stdout.flush()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and _is_of_the_sandbox(error):
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # it came before the command could see to it
                os.kill(os.getpid(), signal.SIGINT)
            traceback.print_exc()
        finally:
            os._exit(status)

    def _said(self, name: str) -> str:
        try:
            return (self.root / name).read_bytes()[:SPEECH].decode("utf-8", "replace")
        except FileNotFoundError:  # killed before it could say anything
            return ""

    def _files(self) -> dict[str, tuple[int, int]]:
        """Return size and time of change of every file that must stay as it is."""
        found = {}
        for folder in (self.inputs, self.cwd, self.home, self._temporary):
            for here, folders, files in os.walk(folder):
                place = Path(here).relative_to(self.root).as_posix()
                folders[:] = [name for name in folders if not _may_be_written(f"{place}/{name}")]
                for name in files:
                    state = os.lstat(os.path.join(here, name))
                    found[f"{place}/{name}"] = state.st_size, state.st_mtime_ns
        return found

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)


def _may_be_written(folder: str) -> bool:
    # Python keeps what it compiles beside the source, whoever imports it.
    return folder in ("cwd/runs", "home/.cache/fedkd/image-folder") or folder.endswith("/__pycache__")


def _is_of_the_sandbox(error: BaseException) -> bool:
    files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    return files <= {__file__, signal.__file__}


def _limit(file_size: int | None) -> None:
    with open("/proc/self/statm") as file:
        born_with = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (born_with + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))


def _wait(pid: int, stop: Stop | None, patience: float) -> tuple[int, bool]:
    """Return a child's exit status when it has ended, and whether it had to be asked to."""
    ended = os.pidfd_open(pid)
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    asked = False
    try:
        if stop is not None and not waiting.poll(1000 * stop.after):
            os.kill(pid, stop.signal)
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
            if waiting.poll(1000 * patience):
                break
            asked = True
            os.kill(pid, number)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), asked
    finally:
        os.close(ended)
