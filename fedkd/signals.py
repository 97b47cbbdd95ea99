"""Stopping long work politely: the first Ctrl-C asks, the second insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signals(on_first: Callable[[], None]) -> Iterator[threading.Event]:
    """Set an event at the first Ctrl-C (or SIGTERM); the second raises `KeyboardInterrupt`.

    Outside the main thread, where Python lets nobody handle signals, the event is never set.

    Args:
        on_first: Called at the first signal.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        on_first()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
