"""A command in a process of its own that starts at once: a fork of one that has imported everything already.

Importing torch, Flower and the rest takes longer than most of what the tests then do. What a shell starts is
tested where it matters: the quickstart, Ctrl-C on a terminal, pipes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd.cli.main import main as fedkd

REPOSITORY = Path(__file__).resolve().parents[2]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "fedkd.cli.main",
        "fedkd.simulation.scenario_check",
        "fedkd.simulation.runner",
        "fedkd.engine.clients",
        "sklearn.datasets",
        "torch._dynamo",
    ]
)


def program(words: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start ``fedkd`` as a program of its own, as a shell does; what it says is piped.

    Args:
        words: The words after the command's name.
        options: Of `subprocess.Popen`.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "fedkd", *words],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


class Fork:
    """A command in a fork, alone in its process group.

    Args:
        words: The words after the command's name.
        folder: Where its standard output and error are kept; an existing folder.
        path: Folders to put on the module search path first.
        environment: Environment variables to set.
        main: The command: called with the words, it returns the exit status.
        terminal: Path of a terminal that is to be the command's own, with standard output on it.
        error_too: Whether standard error is on it as well.
    """

    def __init__(
        self,
        words: Sequence[object],
        folder: Path,
        *,
        path: Sequence[Path] = (),
        environment: Mapping[str, str] | None = None,
        main: Callable[[list[str]], int] = fedkd,
        terminal: str = "",
        error_too: bool = False,
    ) -> None:
        self._said = folder / "stdout.txt", folder / "stderr.txt"
        files = [terminal or self._said[0], terminal if error_too else self._said[1]]
        arguments = ([str(word) for word in words], files, [str(p) for p in path], environment or {})
        self._process = FORKS.Process(target=_run, args=(main, *arguments), daemon=True)
        self._process.start()

    @property
    def stdout(self) -> str:
        """What it has said so far."""
        return self._said[0].read_text() if self._said[0].exists() else ""

    @property
    def stderr(self) -> str:
        """What it has complained about so far."""
        return self._said[1].read_text() if self._said[1].exists() else ""

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid or 0, number)

    def wait(self, timeout: float = 60.0) -> int:
        """Return its exit status when it has ended; minus the signal that it died of."""
        self._process.join(timeout)
        if self.running:
            self.send_signal(signal.SIGABRT)  # it says where it stands, see `_run`
            self._process.join()
            raise AssertionError(f"still running after {timeout} s; it said:\n{self.stdout}{self.stderr}")
        return self._process.exitcode or 0


def run(words: Sequence[object], folder: Path, **options: Any) -> tuple[int, str, str]:
    """Return the exit status, standard output and standard error of a `Fork`."""
    process = Fork(words, folder, **options)
    return process.wait(), process.stdout, process.stderr


def _run(
    main: Callable[[list[str]], int],
    words: list[str],
    said: Sequence[str | Path],
    path: list[str],
    environment: Mapping[str, str],
) -> None:
    os.setsid()
    for descriptor, file in enumerate(said, start=1):
        # To be read as well: the first terminal that a process opens so is its controlling one.
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))
    faulthandler.enable()
    sys.path[:0] = path
    os.environ.update(environment)
    sys.exit(main(words))
