"""What leaves a client passes one list of stages, predictions and weights alike; its bytes are counted after.

A stage has two halves: `encode` on the client and `decode` on the server, which undoes what can be undone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.clients.faults import Poison
from fedkd.clients.fewer_numbers import SENT as SENT
from fedkd.clients.fewer_numbers import Generators, Kinds, Named, Sifting, Stage, TopClasses
from fedkd.errors import TrainingDiverged
from fedkd.fusion.forms import LARGEST
from fedkd.fusion.kinds import Kind
from fedkd.scenario.schema import Filter, Fusion

HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class Poisoning(Stage):
    """A poisoned client sends something else."""

    poison: Poison

    def encode(self, arrays: Named, kinds: Kinds, generators: Generators) -> Named:
        """Return fakes of all that can be faked."""
        generator = generators("poison")
        return {name: self.poison.fake(kinds[name], values, generator) for name, values in arrays.items()}


@dataclass(frozen=True)
class Finite(Stage):
    """What is not a number is told where it comes from, not where it is fused."""

    def encode(self, arrays: Named, kinds: Kinds, generators: Generators) -> Named:
        """Return the arrays; predictions that the server would refuse for their size are clipped.

        Raises:
            TrainingDiverged: Some values are NaN, or too large and no predictions.
        """
        found = dict(arrays)
        for name, values in arrays.items():
            if not values.size or not np.issubdtype(values.dtype, np.floating):
                continue
            low, high = values.min(), values.max()  # NaN, if there is one
            if low >= -LARGEST and high <= LARGEST:
                continue
            if np.isnan(low):
                raise TrainingDiverged(f"{name} are not numbers (NaN); a lower training.lr may help")
            if not kinds[name].is_prediction:
                raise TrainingDiverged(f"{name} are beyond ±{LARGEST:g}; a lower training.lr may help")
            found[name] = np.clip(values, -LARGEST, LARGEST)
        return found


@dataclass(frozen=True)
class Precision(Stage):
    """Predictions and weights travel in this floating-point type."""

    dtype: str

    def encode(self, arrays: Named, kinds: Kinds, generators: Generators) -> Named:
        """Return predictions and weights rounded."""
        return {name: self._rounded(kinds[name], values) for name, values in arrays.items()}

    def _rounded(self, kind: Kind, values: np.ndarray) -> np.ndarray:
        rounds = (kind.is_prediction or kind is Kind.WEIGHTS) and np.issubdtype(values.dtype, np.floating)
        if not rounds:
            return values
        if self.dtype == "float16":  # else what is beyond its range would be infinite
            values = np.clip(values, -HALF, HALF)
        return values.astype(self.dtype)

    def decode(self, arrays: Named, kinds: Kinds) -> Named:
        """Return weights in float32, in which they are averaged; how to read predictions strategies know."""
        half = {
            name: values.astype(np.float32)
            for name, values in arrays.items()
            if kinds[name] is Kind.WEIGHTS and values.dtype == np.float16
        }
        return arrays | half


def upload_stages(fusion: Fusion, poison: Poison | None = None) -> tuple[Stage, ...]:
    """Return the stages of a client's uploads, in order.

    Args:
        fusion: Precision, filters and classes, as a scenario has them.
        poison: What makes the client a poisoned one; None: nothing.
    """
    hostile: tuple[Stage, ...] = () if poison is None else (Poisoning(poison),)
    sifted = [wanted for wanted in fusion.filters if wanted.at == "upload"]
    sifting: tuple[Stage, ...] = (Sifting(sifted),) if sifted else ()
    top: tuple[Stage, ...] = () if fusion.upload_top is None else (TopClasses(fusion.upload_top),)
    return (*hostile, Finite(), Precision(fusion.upload_dtype), *sifting, *top)


def at_fusion(fusion: Fusion) -> list[Filter]:
    """Return the filters that are the server's."""
    return [wanted for wanted in fusion.filters if wanted.at == "fusion"]


def encode(stages: Sequence[Stage], arrays: Named, kinds: Kinds, generators: Generators) -> Named:
    """Return what is sent: the arrays after the client's half of every stage."""
    for stage in stages:
        arrays = stage.encode(arrays, kinds, generators)
    return arrays


def decode(stages: Sequence[Stage], arrays: Named, kinds: Kinds) -> Named:
    """Return what is received: the arrays after the server's half of every stage, the last one first."""
    for stage in reversed(stages):
        arrays = stage.decode(arrays, kinds)
    return arrays
