"""Whether training has taught a model anything: what it gets right, and what a guess would."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike

DEVIATIONS = 2.0
"""How far above guessing counts as better, in standard deviations of a guess."""


@dataclass(frozen=True)
class Hits:
    """How many samples were classified correctly while they were trained on, in the last epoch.

    Attributes:
        right: How many were.
        samples: Of how many.
        guessing: How many are right for whoever always answers with their most frequent class.
    """

    right: int
    samples: int
    guessing: int

    @property
    def accuracy(self) -> float:
        """Share of the samples that were right."""
        return self.right / self.samples

    @property
    def chance(self) -> float:
        """Share of the samples that guessing gets right."""
        return self.guessing / self.samples

    @property
    def at_chance(self) -> bool:
        """Whether these hits are no better than guessing.

        With n samples of which m are of the most frequent class, they are if they do not exceed m by more
        than ``2σ``, ``σ = √(m (n − m) / n)``: the standard deviation of how many a guess gets right that is
        right with probability m / n. Too few samples, or too few of other classes, say nothing: where even
        training without a mistake is less than ``4σ`` above m, no hits are at chance. So it takes 16 samples
        of two classes in balance, and about as many of other classes where one has nearly all.
        """
        others = self.samples - self.guessing
        if others <= 0:
            return False
        margin = DEVIATIONS * sqrt(self.guessing * others / self.samples)
        return others >= 2 * margin and self.right <= self.guessing + margin


def guessing_right(labels: ArrayLike) -> int:
    """Return how many of some labels `[n]` are of the most frequent class."""
    counted = np.asarray(labels)
    return int(np.bincount(counted).max()) if len(counted) else 0
