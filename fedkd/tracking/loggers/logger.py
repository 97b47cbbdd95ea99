"""What a logger is: something that is handed the figures of each round, and may fail in any way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from fedkd.tracking.atomic import write_text_atomically
from fedkd.tracking.folder import CLIENTS, SCENARIO, SCHEDULE
from fedkd.tracking.recorder import METRICS, SUMMARY, TIMINGS

if TYPE_CHECKING:
    from fedkd.scenario.schema import Scenario
    from fedkd.scenario.tracking import Artifact

RECORD = (SCENARIO, SCHEDULE, CLIENTS, METRICS, TIMINGS, SUMMARY)
"""Files of a run folder that say what a run was and what it found."""


@dataclass(frozen=True)
class LoggedRun:
    """The run that a logger is opened for.

    Attributes:
        scenario: What is simulated.
        folder: The run folder; what a logger remembers of the run lies there.
        resumed_from: The last round that was already done, 0 for a fresh run.
        tell: Tells the user a line.
    """

    scenario: Scenario
    folder: Path
    resumed_from: int
    tell: Callable[[str], None]

    @property
    def name(self) -> str:
        """The run for a person: the scenario's name and, unless it ends in it, its seed."""
        seed = f"-seed{self.scenario.seed}"
        return self.scenario.name if self.scenario.name.endswith(seed) else self.scenario.name + seed


@dataclass(frozen=True, eq=False)
class Figures:
    """What there is to log of a round.

    Attributes:
        round: 1-based; the x axis of all but `of_task`.
        task: Task of the round, 0-based; None: there is no stream, or not all clients are at one.
        values: By name, `split/metric` as in `metrics.jsonl`.
        of_task: Figures of a task that ended with the round, with the task for an x axis; else none.
        heat_maps: `[rows, columns]` in [0, 1] by name, NaN where nothing was measured.
        histograms: `[clients]` by name.
    """

    round: int
    task: int | None
    values: Mapping[str, float]
    of_task: Mapping[str, float] = field(default_factory=dict)
    heat_maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    histograms: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        status: `done`, `failed` or `interrupted`.
        rounds: Its last round.
        summary: What `summary.json` holds; empty unless it is done.
    """

    status: Literal["done", "failed", "interrupted"]
    rounds: int = 0
    summary: Mapping[str, Any] = field(default_factory=dict)


class Logger(Protocol):
    """Takes the figures of one run; called from one thread, which is not the run's.

    Whatever it raises is told once, and nothing is asked of it any more.
    """

    def open(self, run: LoggedRun) -> None:
        """Begin, or go on with what was logged of a run that is resumed."""

    def log(self, figures: Figures) -> None:
        """Take a round's figures; each round comes once, in order."""

    def close(self, ending: Ending) -> None:
        """Write what waits and let go of everything."""


def files_of(folder: Path, wanted: Artifact) -> list[Path]:
    """Return the files of a run folder that an artifact is made of.

    Args:
        folder: The run folder.
        wanted: `record`, or `checkpoint`: all that the store of checkpoints holds.
    """
    if wanted == "record":
        return [folder / name for name in RECORD if (folder / name).is_file()]
    return sorted(path for path in (folder / "checkpoints").rglob("*") if path.is_file())


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return tables as dotted keys to values; lists are counted from 0, what is absent is left out."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        inner = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(inner, Mapping) and inner:
            found |= flat({str(name): item for name, item in inner.items()}, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value
    return found


def remembered(path: Path) -> str | None:
    """Return the one line that a logger keeps in a run folder; None: it has kept nothing."""
    return path.read_text(encoding="utf-8").strip() or None if path.exists() else None


def remember(path: Path, text: str) -> None:
    """Keep one line in a run folder, for when the run is resumed."""
    write_text_atomically(path, f"{text}\n")
