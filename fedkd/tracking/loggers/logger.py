"""Interface of loggers, and the figures that they take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from fedkd.scenario import Artifact, Scenario
from fedkd.storage import write_text_atomically
from fedkd.tracking.folder import CLIENTS_FILE, SCENARIO_FILE, SCHEDULE_FILE
from fedkd.tracking.recorder import METRICS_FILE, SUMMARY_FILE, TIMINGS_FILE

RECORD = (SCENARIO_FILE, SCHEDULE_FILE, CLIENTS_FILE, METRICS_FILE, TIMINGS_FILE, SUMMARY_FILE)
"""Files of a run folder that hold its scenario and its results."""
SIDE, GREY = 480, (128, 128, 128)  # approximate pixels of a picture's longer side; colour of NaN
VIRIDIS = bytes.fromhex("440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725")
"""RGB of Plotly's colour map at equal distances, from 0 to 1."""


@dataclass(frozen=True)
class LoggedRun:
    """The run that a logger is opened for."""

    scenario: Scenario
    folder: Path  # run folder
    resumed_from: int  # last finished round, 0 for a new run
    tell: Callable[[str], None]  # shows the user a line

    @property
    def name(self) -> str:
        """Display name of the run: the scenario's name, followed by the seed."""
        seed = f"-seed{self.scenario.seed}"
        return self.scenario.name if self.scenario.name.endswith(seed) else self.scenario.name + seed

    def remembered(self, name: str) -> str | None:
        """Return the line that the logger saved in a file of the run folder, if any."""
        path = self.folder / name
        return path.read_text(encoding="utf-8").strip() or None if path.exists() else None

    def remember(self, name: str, text: str) -> None:
        """Save a line in a file of the run folder, for a resumed run."""
        write_text_atomically(self.folder / name, f"{text}\n")


@dataclass(frozen=True, eq=False)
class Figures:
    """Figures of a round, by name."""

    round: int  # from 1; the x axis of all but `of_task`
    task: int | None  # from 0; None without a stream in lockstep
    values: Mapping[str, float]  # `split/metric` as in metrics.jsonl
    of_task: Mapping[str, float] = field(default_factory=dict)  # of a finished task, the x axis
    heat_maps: Mapping[str, np.ndarray] = field(default_factory=dict)  # [rows, columns] in [0, 1], or NaN
    histograms: Mapping[str, np.ndarray] = field(default_factory=dict)  # [clients]


@dataclass(frozen=True)
class Ending:
    """Status of an ended run, its last round, and its `summary.json` if it is done."""

    status: Literal["done", "failed", "interrupted"]
    rounds: int = 0
    summary: Mapping[str, Any] = field(default_factory=dict)


class Logger(Protocol):
    """Logs the figures of one run in its own thread; its first error switches it off."""

    def open(self, run: LoggedRun) -> None:
        """Begin a log, or continue that of a resumed run."""

    def log(self, figures: Figures) -> None:
        """Log a round's figures; each round comes once, in order."""

    def close(self, ending: Ending) -> None:
        """Write pending figures and release all resources."""


def files_of(folder: Path, wanted: Artifact) -> list[Path]:
    """Return the files of an artifact: the run's record or all checkpoints."""
    if wanted == "record":
        return [folder / name for name in RECORD if (folder / name).is_file()]
    return sorted(path for path in (folder / "checkpoints").rglob("*") if path.is_file())


def heat_map(values: np.ndarray) -> np.ndarray:
    """Return a picture `[height, width, 3]` uint8 of a table in [0, 1], one square per number.

    Values beyond [0, 1] have the nearest colour. NaN is grey. The first row is on top.
    """
    known, anchors = np.isfinite(values), np.frombuffer(VIRIDIS, np.uint8).reshape(-1, 3)
    places = np.linspace(0.0, 1.0, len(anchors))
    shades = [np.interp(np.where(known, values, 0.0), places, channel) for channel in anchors.T]
    colours = np.where(known[..., None], np.rint(np.stack(shades, axis=-1)), GREY).astype(np.uint8)
    block = max(1, SIDE // max(values.shape))
    return colours.repeat(block, axis=0).repeat(block, axis=1)
