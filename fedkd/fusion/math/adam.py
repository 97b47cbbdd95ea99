"""Adam in NumPy, for a few parameters on the server."""

from collections.abc import Sequence

import numpy as np

DECAYS = (0.9, 0.999)
EPSILON = 1e-8


class Adam:
    """Steps of Adam (Kingma and Ba 2015)."""

    def __init__(self, lr: float) -> None:
        self._lr = lr
        self._taken = 0
        self._moments: list[tuple[np.ndarray, np.ndarray]] = []

    def step(self, arrays: Sequence[np.ndarray], gradients: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return new arrays after a step down their gradients."""
        moments = self._moments or [(np.zeros_like(array), np.zeros_like(array)) for array in arrays]
        self._taken += 1
        self._moments, moved = [], []
        for array, gradient, (first, second) in zip(arrays, gradients, moments, strict=True):
            mean = DECAYS[0] * first + (1.0 - DECAYS[0]) * gradient
            square = DECAYS[1] * second + (1.0 - DECAYS[1]) * gradient**2
            self._moments.append((mean, square))
            spread = np.sqrt(square / (1.0 - DECAYS[1] ** self._taken)) + EPSILON
            moved.append(array - self._lr * mean / (1.0 - DECAYS[0] ** self._taken) / spread)
        return moved
