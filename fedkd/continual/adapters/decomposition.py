"""Layout of the weights that are split into a shared base and task parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

HEAD = "head.weight"


@dataclass(frozen=True)
class Layout:
    """The weights `[out, ...]` of two or more dimensions below the head, by name: P numbers of U units.

    The head is the weight ``head.weight``, else the last one of two dimensions.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(shapes: Mapping[str, Sequence[int]]) -> Layout:
        """Return the layout of a model, given the shapes of its parameters in order."""
        head = head_of(shapes)
        return Layout({name: tuple(s) for name, s in shapes.items() if len(s) > 1 and name != head})

    @property
    def size(self) -> int:
        """P."""
        return sum(map(prod, self.shapes.values()))

    @property
    def units(self) -> int:
        """U: outputs of all these weights."""
        return sum(shape[0] for shape in self.shapes.values())

    def fan_in(self) -> np.ndarray:
        """Return the number of weights per unit, `[U]` int64; in a flat array they lie side by side."""
        per_layer = [np.full(shape[0], prod(shape[1:])) for shape in self.shapes.values()]
        return np.concatenate([np.empty(0, np.int64), *per_layer])

    def flat(self, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return weights by name as one array, `[P]` float32."""
        parts = [weights[name].ravel() for name in self.shapes]
        return np.concatenate([np.empty(0, np.float32), *parts]).astype(np.float32)

    def split(self, flat: Any) -> dict[str, Any]:
        """Return the weights of an array or a tensor `[P]` by name."""
        ends = np.cumsum([prod(shape) for shape in self.shapes.values()]).tolist()
        return {
            name: flat[end - prod(shape) : end].reshape(shape)
            for (name, shape), end in zip(self.shapes.items(), ends, strict=True)
        }


def head_of(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Return the name of the output layer's weight; None: that layer is not linear."""
    if HEAD in shapes:
        return HEAD
    linear = [name for name, shape in shapes.items() if len(shape) == 2]
    return linear[-1] if linear else None
