"""Correct answers of a model in training, compared with majority-class guessing."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike

DEVIATIONS = 2.0
"""Margin above guessing, in standard deviations of a guess."""


@dataclass(frozen=True)
class TrainingHits:
    """Correct answers on training samples in the last epoch; `guessing`: size of the largest class."""

    right: int
    samples: int
    guessing: int

    @property
    def accuracy(self) -> float:
        return self.right / self.samples

    @property
    def chance(self) -> float:
        return self.guessing / self.samples

    @property
    def at_chance(self) -> bool:
        """True if these hits are no better than majority-class guessing.

        With n samples, m of them of the most frequent class, hits must exceed m by more than ``2σ``,
        ``σ = √(m (n − m) / n)``. If n is less than ``4σ`` above m, no hits are at chance.
        """
        others = self.samples - self.guessing
        if others <= 0:
            return False
        margin = DEVIATIONS * sqrt(self.guessing * others / self.samples)
        return others >= 2 * margin and self.right <= self.guessing + margin


def majority_class_count(labels: ArrayLike) -> int:
    """Return the number of labels `[n]` of the most frequent class."""
    counted = np.asarray(labels)
    return int(np.bincount(counted).max()) if len(counted) else 0
