"""Client models that learn from targets by refitting: their state is the last targets, not a pickle."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import numpy as np

SAMPLES = "guidance/samples"
SEED = "seed"

Arrays = Mapping[str, np.ndarray]


class RefitModel(ABC):
    """A client model that learns by fresh fits, which are equal bit for bit."""

    guidance_name: ClassVar[str]
    """Name of the guidance in a state."""

    def __init__(self) -> None:
        self._guidance: tuple[np.ndarray, np.ndarray] | None = None  # samples [K], targets [K, C]
        self._seed = -1

    @abstractmethod
    def fit(self, x: np.ndarray, y: np.ndarray, transfer_x: np.ndarray, seed: int) -> None:
        """Fit on private samples and, after guidance, on the transfer set `[M, ...]`."""

    def learn(
        self,
        x: np.ndarray,
        y: np.ndarray,
        transfer_x: np.ndarray,
        samples: np.ndarray,
        targets: np.ndarray,
        seed: int,
    ) -> None:
        """Fit with new guidance: `targets` `[K, C]` of the transfer samples with indices `samples`."""
        self._guidance = (np.asarray(samples), np.asarray(targets, dtype=np.float64))
        self.fit(x, y, transfer_x, seed)

    def state(self) -> dict[str, np.ndarray]:
        """Return what `restore` needs: the guidance and the seed of the last fit."""
        arrays = {SEED: np.array(self._seed, dtype=np.int64)}
        if self._guidance is not None:
            arrays[SAMPLES], arrays[self.guidance_name] = self._guidance
        return arrays

    def restore(self, arrays: Arrays, x: np.ndarray, y: np.ndarray, transfer_x: np.ndarray) -> None:
        """Refit to a `state`."""
        if SAMPLES in arrays:
            self._guidance = (arrays[SAMPLES], arrays[self.guidance_name])
        seed = int(arrays[SEED])
        if seed >= 0:
            self.fit(x, y, transfer_x, seed)


def set_seed(estimator: Any, seed: int) -> None:
    """Set an estimator's `random_state`, if it has one."""
    if hasattr(estimator, "get_params") and "random_state" in estimator.get_params():
        estimator.set_params(random_state=seed % 2**32)


def flatten(x: np.ndarray) -> np.ndarray:
    """Return samples `[n, ...]` as rows `[n, D]`."""
    return x.reshape(len(x), prod(x.shape[1:]))  # -1 fails for an empty array
