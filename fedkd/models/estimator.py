"""Any classifier with `fit` and `predict_proba` as a client model: a random forest beside a CNN.

Such a model is not trained by gradients. It learns from guidance by *weighted refitting*: fitted afresh on
the client's own samples, each with weight 1, together with every transfer sample once per class, weighted by
the guidance's probability of that class. So all it remembers is the last guidance, which is what its
checkpoint holds: arrays, not a pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fedkd.errors import UserError

FLOOR = 1e-6
"""Smallest probability: its logarithm is the lowest logit an estimator gives."""
NEGLIGIBLE = 1e-2
"""Rows of guidance below this probability are left out of a refit."""
PROBABILITIES = "guidance/probabilities"
SAMPLES = "guidance/samples"
SEED = "seed"


@runtime_checkable
class Estimator(Protocol):
    """What a classifier must offer, in scikit-learn's terms.

    After `fit`, `classes_` names the columns of `predict_proba`; without it column c is class c. An estimator
    that takes a `random_state` in its constructor gets a derived seed.
    """

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> Any:
        """Fit on `X` `[n, D]` and labels `y` `[n]`."""

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return class probabilities `[n, K]`."""


def random_forest(input_shape: tuple[int, ...], classes: int, *, trees: int = 100, **args: Any) -> Estimator:
    """Return a random forest (Breiman 2001). `args` are scikit-learn's."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=trees, n_jobs=1, **args)


def gradient_boosting(
    input_shape: tuple[int, ...], classes: int, *, iterations: int = 50, **args: Any
) -> Estimator:
    """Return histogram gradient boosting (Ke et al. 2017, LightGBM). `args` are scikit-learn's."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=iterations, early_stopping=False, **args)


def sgd(input_shape: tuple[int, ...], classes: int, *, alpha: float = 1e-3, **args: Any) -> Estimator:
    """Return logistic regression fitted by stochastic gradient descent. `args` are scikit-learn's."""
    from sklearn.linear_model import SGDClassifier

    return SGDClassifier(loss="log_loss", alpha=alpha, **args)


class EstimatorModel:
    """An estimator that can be refitted, and refitted again to the last bit.

    Args:
        make: Returns a fresh estimator.
        classes: Number of classes C.
    """

    def __init__(self, make: Callable[[], Estimator], classes: int) -> None:
        self._make = make
        self._classes = classes
        self._fitted: Estimator | None = None
        self._guidance: tuple[np.ndarray, np.ndarray] | None = None  # samples [K], probabilities [K, C]
        self._seed = -1

    def fit(self, x: np.ndarray, y: np.ndarray, transfer_x: np.ndarray, seed: int) -> None:
        """Fit on private samples and, if there has been guidance, on the transfer set weighted by it.

        Args:
            x: Private samples `[n, ...]`.
            y: Their labels `[n]`.
            transfer_x: The whole transfer set `[M, ...]`.
            seed: Derived seed of what the estimator draws.
        """
        self._seed = seed
        rows, labels = flatten(x), y
        weights = np.ones(len(y))
        if self._guidance is not None:
            samples, probabilities = self._guidance
            sample, label = np.nonzero(probabilities >= NEGLIGIBLE)
            rows = np.concatenate([rows, flatten(transfer_x)[samples[sample]]])
            labels = np.concatenate([labels, label])
            weights = np.concatenate([weights, probabilities[sample, label]])
        if len(np.unique(labels)) == 1:  # most classifiers refuse to fit a single class
            self._fitted = _Constant(int(labels[0]))
            return
        estimator = self._make()
        if hasattr(estimator, "get_params") and "random_state" in estimator.get_params():
            estimator.set_params(random_state=seed % 2**32)  # type: ignore[attr-defined]
        estimator.fit(rows, labels, sample_weight=weights)
        self._fitted = estimator

    def learn(self, samples: np.ndarray, probabilities: np.ndarray) -> None:
        """Take over guidance; it has its effect with the next `fit`.

        Args:
            samples: Indices of transfer samples `[K]`.
            probabilities: What the guidance says of them, `[K, C]`.
        """
        self._guidance = (np.asarray(samples), np.asarray(probabilities, dtype=np.float64))

    def predict_logits(self, x: np.ndarray) -> np.ndarray:
        """Return log-probabilities `[n, C]` float32; all classes alike before the first `fit`."""
        if self._fitted is None or len(x) == 0:  # classifiers refuse to predict no sample at all
            return np.zeros((len(x), self._classes), dtype=np.float32)
        found = np.asarray(self._fitted.predict_proba(flatten(x)))
        columns = np.asarray(getattr(self._fitted, "classes_", np.arange(found.shape[1])), dtype=np.int64)
        probabilities = np.zeros((len(x), self._classes))
        probabilities[:, columns] = found
        return np.log(np.maximum(probabilities, FLOOR)).astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        """Return what `restore` needs: the guidance and the seed of the last fit."""
        arrays = {SEED: np.array(self._seed, dtype=np.int64)}
        if self._guidance is not None:
            arrays[SAMPLES], arrays[PROBABILITIES] = self._guidance
        return arrays

    def restore(
        self, arrays: Mapping[str, np.ndarray], x: np.ndarray, y: np.ndarray, transfer_x: np.ndarray
    ) -> None:
        """Refit to what `state` was taken of."""
        if SAMPLES in arrays:
            self._guidance = (arrays[SAMPLES], arrays[PROBABILITIES])
        seed = int(arrays[SEED])
        if seed >= 0:
            self.fit(x, y, transfer_x, seed)


class _Constant:
    """Predicts the only class there is."""

    def __init__(self, label: int) -> None:
        self.classes_ = np.array([label])

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> _Constant:
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return np.ones((len(X), 1))


def flatten(x: np.ndarray) -> np.ndarray:
    """Return samples `[n, ...]` as rows `[n, D]`."""
    return x.reshape(len(x), -1)


def is_estimator_class(factory: Any) -> bool:
    """Return whether a plug-in is a class of estimators itself, like scikit-learn's, and no factory."""
    return isinstance(factory, type) and hasattr(factory, "fit") and hasattr(factory, "predict_proba")


def check_estimator(name: str, estimator: Any) -> None:
    """Refuse an object that is neither a torch module nor an estimator.

    Raises:
        UserError: It lacks `fit` or `predict_proba`.
    """
    missing = [
        method for method in ("fit", "predict_proba") if not callable(getattr(estimator, method, None))
    ]
    if missing:
        raise UserError(
            f"'{name}' made a {type(estimator).__name__} without `{missing[0]}`; a client model is a"
            " torch.nn.Module, or has `fit` and `predict_proba`",
            key="clients.model",
        )
