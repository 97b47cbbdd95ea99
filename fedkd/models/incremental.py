"""Classifiers with their own way to learn from guidance, a method `distill`."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np

from fedkd.errors import UserError
from fedkd.models.estimator import Arrays, Estimator, EstimatorModel, flatten, predicted_logits, set_seed

OWN = "own/"


@runtime_checkable
class IncrementalEstimator(Estimator, Protocol):
    """An estimator that continues from its present state in every `fit` and `distill`."""

    def distill(self, X: np.ndarray, probabilities: np.ndarray) -> Any:
        """Learn `probabilities` `[m, C]` of the transfer samples `X` `[m, D]`."""

    def state(self) -> Arrays:
        """Return everything learned, as arrays by name."""

    def restore(self, arrays: Arrays) -> Any:
        """Continue, in a fresh object, from a `state`."""


class IncrementalModel:
    """An estimator with its own `distill` and state, and the methods of `EstimatorModel`."""

    def __init__(self, make: Callable[[], IncrementalEstimator], classes: int) -> None:
        self._make = make
        self._classes = classes
        self._estimator = make()
        self._has_learned = False

    def fit(self, x: np.ndarray, y: np.ndarray, transfer_x: np.ndarray, seed: int) -> None:
        """Fit on private samples."""
        set_seed(self._estimator, seed)
        self._estimator.fit(flatten(x), y)
        self._has_learned = True

    def learn(
        self,
        x: np.ndarray,
        y: np.ndarray,
        transfer_x: np.ndarray,
        samples: np.ndarray,
        probabilities: np.ndarray,
        seed: int,
    ) -> None:
        """Distil guidance."""
        set_seed(self._estimator, seed)
        self._estimator.distill(flatten(transfer_x)[samples], np.asarray(probabilities, dtype=np.float64))
        self._has_learned = True

    @property
    def fitted(self) -> IncrementalEstimator | None:
        """The estimator; None: it has learned nothing yet."""
        return self._estimator if self._has_learned else None

    def predict_logits(self, x: np.ndarray) -> np.ndarray:
        """Return logits `[n, C]` float32; zeros before the first `fit`."""
        if not self._has_learned:
            return np.zeros((len(x), self._classes), dtype=np.float32)
        return predicted_logits(self._estimator, x, self._classes)

    def state(self) -> dict[str, np.ndarray]:
        """Return the estimator's own state, if any; a `UserError` if it is no table of arrays."""
        if not self._has_learned:
            return {}
        given = self._estimator.state()
        if not isinstance(given, Mapping):
            self._refuse_state(f"a {type(given).__name__}")
        arrays = {f"{OWN}{name}": np.array(values) for name, values in given.items()}
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf":
                self._refuse_state(f"'{name.removeprefix(OWN)}' of type {array.dtype}")
        return arrays

    def _refuse_state(self, what: str) -> NoReturn:
        raise UserError(
            f"`state` of {type(self._estimator).__name__} returned {what}; must return a dict of"
            " numeric NumPy arrays by name",
            key="clients.model",
        )

    def restore(self, arrays: Arrays, x: np.ndarray, y: np.ndarray, transfer_x: np.ndarray) -> None:
        """Let a fresh estimator continue from its own state."""
        self._estimator = self._make()
        own = {name.removeprefix(OWN): values for name, values in arrays.items() if name.startswith(OWN)}
        self._has_learned = bool(own)
        if own:
            self._estimator.restore(own)


def client_estimator(make: Callable[[], Any], classes: int) -> EstimatorModel | IncrementalModel:
    """Return an estimator behind its adapter; `make` returns a fresh one."""
    if callable(getattr(make(), "distill", None)):
        return IncrementalModel(make, classes)
    return EstimatorModel(make, classes)
