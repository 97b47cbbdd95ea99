"""How metrics are titled, scaled and ranked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A metric as tables and figures show it.

    Attributes:
        name: As in the bench file, e.g. ``accuracy_local``.
        title: For a person.
        unit: Of the scaled value; empty: none.
        scale: Shown value = recorded value × scale.
        decimals: Digits after the point.
        better: Which end is good; None: neither.
    """

    name: str
    title: str
    unit: str = ""
    scale: float = 1.0
    decimals: int = 3
    better: Literal["higher", "lower"] | None = None

    @property
    def label(self) -> str:
        """Title and unit, as on an axis."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def difference_unit(self) -> str:
        """Unit of a difference: percentages differ by points."""
        return "points" if self.unit == "%" else self.unit


def metric(name: str) -> Metric:
    """Return how the metric called `name` is shown."""
    if name in _WHOLE_RUN:
        return _WHOLE_RUN[name]
    stem, _, split = name.rpartition("_")
    words = stem.replace("_", " ")
    if stem.endswith("accuracy"):
        return Metric(name, f"{split} {words}", "%", 100.0, 1, "higher")
    if stem == "fusion_gain":
        return Metric(name, f"fusion gain, {split}", "points", 100.0, 1, "higher")
    if stem == "loss":
        return Metric(name, f"{'training' if split == 'train' else split} loss", better="lower")
    if stem == "effective_neighbours":
        return Metric(name, "effective neighbours", decimals=1)
    if stem == "forgetting":
        return Metric(name, f"{split} forgetting", "points", 100.0, 1, "lower")
    return Metric(name, f"{words}, {split}")


_WHOLE_RUN = {
    "bytes_up": Metric("bytes_up", "sent to the server", "MB", 1e-6, 2, "lower"),
    "bytes_down": Metric("bytes_down", "sent to the clients", "MB", 1e-6, 2, "lower"),
    "seconds": Metric("seconds", "time of a run", "s", 1.0, 1, "lower"),
}
