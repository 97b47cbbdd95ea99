"""Stop long work: the first Ctrl-C requests a stop, the second forces it."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO, Any, cast

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def watch_stop_signals(on_first: Callable[[], None]) -> Iterator[threading.Event]:
    """Set an event and call `on_first` at the first Ctrl-C, SIGTERM or SIGHUP.

    A second Ctrl-C or SIGTERM raises `KeyboardInterrupt`.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _hang_up_once()
        elif stop.is_set():
            raise KeyboardInterrupt
        if not stop.is_set():
            stop.set()
            on_first()

    with _handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), on_signal):
        yield stop


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `KeyboardInterrupt` like Ctrl-C, without other handlers."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _hang_up_once()
        raise KeyboardInterrupt

    with _handled((signal.SIGTERM, signal.SIGHUP), on_signal):
        yield


def _hang_up_once() -> None:
    """Ignore SIGHUP from now on: kernel and shell both send it for a closed terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextmanager
def _handled(numbers: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    """Handle signals, except a SIGHUP that is ignored, as by ``nohup``."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    previous = {number: signal.signal(number, handler) for number in numbers if number not in ignored}
    try:
        yield
    finally:
        for number, former in previous.items():
            if signal.getsignal(number) is handler:  # else the terminal is closed, and reported
                signal.signal(number, former)


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Restore this process's handlers of stop signals after the block: Ray sets its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            if callable(handler):  # by default SIGTERM would end the process, and Ray's processes live on
                signal.signal(number, handler)


@contextmanager
def sheltered_from_hang_up() -> Iterator[None]:
    """Let processes started meanwhile outlive the terminal; their parent stops them."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


@contextmanager
def ignore_closed_terminal() -> Iterator[None]:
    """Prevent failures from a standard output or error of a closed terminal."""
    former = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("IO[str]", _Outliving(stream)) for stream in former)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = former


class _Outliving:
    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._let_go(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._let_go(error)

    def _let_go(self, error: OSError) -> None:
        if error.errno != errno.EIO:
            raise error
        # The buffer goes there too: Python flushes it at exit, which must not fail aloud.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
