"""Folder of a run, and its server's settings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedkd.tracking import RunObserver


@dataclass(frozen=True)
class Deployment:
    """The server's settings for deployed nodes."""

    federation: str
    """Digest common to all participants; a node with another one is refused."""
    patience: float = 60.0
    """Seconds in which all nodes have to come before the first round."""
    reply_within: float | None = None
    """Seconds that a node has for a reply; None: as long as Flower keeps a message."""


@dataclass(frozen=True)
class RunControl:
    """Folder of a run, its observer, and its end.

    Args:
        folder: The run folder; `scenario.toml` is already in it.
        stop_requested: Called after every round; True ends the run there, with its state saved.
        resume: Go on from the latest checkpoint; `again`: in the same process.
        deployment: Settings for deployed nodes; None: a simulation.
    """

    folder: Path
    observer: RunObserver = field(default_factory=RunObserver)
    stop_requested: Callable[[], bool] = lambda: False
    resume: bool = False
    again: bool = False
    deployment: Deployment | None = None
