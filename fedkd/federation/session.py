"""What a run needs besides the scenario."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedkd.tracking.events import RunObserver


@dataclass(frozen=True)
class Session:
    """What a run needs besides the scenario: where it writes, who watches, and when to stop.

    Args:
        folder: The run folder; `scenario.toml` is already in it.
        observer: Told what happens.
        stop_requested: Asked after every round; true ends the run there, with its state saved.
        resume: Whether to go on from the folder's latest checkpoint.
    """

    folder: Path
    observer: RunObserver = field(default_factory=RunObserver)
    stop_requested: Callable[[], bool] = lambda: False
    resume: bool = False
