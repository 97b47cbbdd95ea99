"""What a run needs besides its plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedkd.tracking.events import RunObserver


@dataclass(frozen=True)
class RunControl:
    """Where a run writes, who watches it, and when it stops.

    Args:
        folder: The run folder; `scenario.toml` is already in it.
        observer: Told what happens.
        stop_requested: Asked after every round; true ends the run there, with its state saved.
        resume: Whether to go on from the folder's latest checkpoint.
        again: Whether this is a run under way that goes back there: it does not begin for who watches.
    """

    folder: Path
    observer: RunObserver = field(default_factory=RunObserver)
    stop_requested: Callable[[], bool] = lambda: False
    resume: bool = False
    again: bool = False
