"""What a run needs besides its plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedkd.tracking.events import RunObserver


@dataclass(frozen=True)
class Deployment:
    """The server's settings for deployed nodes.

    Args:
        federation: Digest of what all participants have in common; a node with another one is refused.
        patience: Seconds that all nodes have to come before the first round.
        reply_within: Seconds that a node has for a reply; None: as long as Flower keeps a message.
    """

    federation: str
    patience: float = 60.0
    reply_within: float | None = None


@dataclass(frozen=True)
class RunControl:
    """Where a run writes, who watches it, and when it stops.

    Args:
        folder: The run folder; `scenario.toml` is already in it.
        observer: Told what happens.
        stop_requested: Asked after every round; true ends the run there, with its state saved.
        resume: Whether to go on from the folder's latest checkpoint.
        again: Whether this is a run under way that goes back there: it does not begin for who watches.
        deployment: Of nodes that keep their clients to themselves; None: a simulation.
    """

    folder: Path
    observer: RunObserver = field(default_factory=RunObserver)
    stop_requested: Callable[[], bool] = lambda: False
    resume: bool = False
    again: bool = False
    deployment: Deployment | None = None
