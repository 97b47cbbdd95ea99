"""What was set over a scenario file: by ``--set``, by arguments, by a bench."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layers:
    """What was set over a scenario file, as dotted keys.

    Attributes:
        over: By ``--set``, by arguments or for all cells of a bench, the lowest layer first.
        axes: By each axis of a bench, for one of its cells. None: it is no cell.
        varied: By each axis at some of its levels.
    """

    over: Sequence[Collection[str]] = ()
    axes: Sequence[Collection[str]] | None = None
    varied: Sequence[Collection[str]] = ()

    def of(self, key: str) -> int:
        """Return the highest layer that sets a key; 0: the file does."""
        return _highest(key, [*self.over, *(self.axes or ())])

    def of_any(self, keys: Collection[str]) -> int:
        """Return the highest layer that may set one of some keys; 0: only the file does."""
        return max(_highest(key, [*self.over, *self.varied]) for key in keys)

    def is_axis(self, layer: int) -> bool:
        """Return whether a layer is an axis."""
        return layer > len(self.over)


def _highest(key: str, layers: Sequence[Collection[str]]) -> int:
    found = [n for n, keys in enumerate(layers, start=1) if any(_touch(key, own) for own in keys)]
    return max(found, default=0)


FILE_ALONE = Layers()


def _touch(one: str, other: str) -> bool:
    """Return whether two dotted keys are one, or one is a table around the other."""
    return f"{one}.".startswith(f"{other}.") or other.startswith(f"{one}.")
