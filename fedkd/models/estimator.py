"""Client models with `fit` and `predict_proba`, such as a random forest beside a CNN.

They learn from targets by *weighted refitting*. A fresh fit sees private samples with weight 1. It sees every
transfer sample once per class, weighted by the target's probability of the class. So their state is the last
targets: arrays, not a pickle. A classifier with its own `distill` continues: see `IncrementalModel`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from fedkd.errors import TrainingDiverged, refuse_if
from fedkd.models.refit import Arrays, RefitModel, flatten, set_seed

FLOOR = 1e-6  # smallest probability: its logarithm is the lowest logit an estimator gives
MOST_TREES = 100_000
NEGLIGIBLE = 1e-2  # rows of guidance below this probability are left out of a refit
LARGEST_LOGIT = 1e30  # larger logits change nothing; float32 ends at 3e38
OWN_PREFIX = "own/"


@runtime_checkable
class Estimator(Protocol):
    """The interface of a classifier, in scikit-learn's terms.

    After `fit`, `classes_` names the columns of `predict_proba`; without it column c is class c.
    `predict_logits` of the same shape may replace `predict_proba`. If `fit` has no `sample_weight`, the
    classifier is refitted on the guidance's likeliest classes. A parameter `random_state` gets a derived seed
    before every fit.
    """

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> Any:
        """Fit on `X` `[n, D]` and labels `y` `[n]`."""

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return class probabilities `[n, K]`."""


def random_forest(input_shape: tuple[int, ...], classes: int, *, trees: int = 100, **args: Any) -> Estimator:
    """Return a random forest (Breiman 2001). `args` are scikit-learn's."""
    from sklearn.ensemble import RandomForestClassifier

    too_many = isinstance(trees, int) and trees > MOST_TREES
    refuse_if(too_many, f"must be ≤ {MOST_TREES:,}, got {trees}", "clients.args.trees")
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


class EstimatorModel(RefitModel):
    """A classifier with weighted refits."""

    guidance_name: ClassVar[str] = "guidance/probabilities"

    def __init__(self, make: Callable[[], Estimator], classes: int) -> None:
        super().__init__()
        self._make, self._classes = make, classes
        self._fitted: Estimator | None = None

    def fit(self, x: np.ndarray, y: np.ndarray, transfer_x: np.ndarray, seed: int) -> None:
        """Fit on private samples and, after guidance, on the transfer set `[M, ...]` weighted by it."""
        self._seed = seed
        estimator = self._make()
        weighted = _takes_weights(estimator)
        rows, labels, weights = flatten(x), y, np.ones(len(y))
        if self._guidance is not None:
            samples, probabilities = self._guidance
            if weighted:
                sample, label = np.nonzero(probabilities >= NEGLIGIBLE)
            else:
                sample, label = np.arange(len(samples)), probabilities.argmax(axis=1)
            rows = np.concatenate([rows, flatten(transfer_x)[samples[sample]]])
            labels = np.concatenate([labels, label])
            weights = np.concatenate([weights, probabilities[sample, label]])
        present = np.unique(labels)
        if len(present) <= 1:  # most classifiers refuse to fit a single class
            self._fitted = _Constant(int(present[0])) if len(present) else None
            return
        set_seed(estimator, seed)
        if weighted:
            estimator.fit(rows, labels, sample_weight=weights)
        else:
            estimator.fit(rows, labels)
        self._fitted = estimator

    @property
    def fitted(self) -> Estimator | None:
        """The estimator after its last fit; None: there was none."""
        return self._fitted

    def predict_logits(self, x: np.ndarray) -> np.ndarray:
        """Return logits, or log-probabilities, `[n, C]` float32; zeros before the first `fit`."""
        if self._fitted is None:
            return np.zeros((len(x), self._classes), dtype=np.float32)
        return predicted_logits(self._fitted, x, self._classes)


def predicted_logits(estimator: Any, x: np.ndarray, classes: int) -> np.ndarray:
    """Return a fitted estimator's logits or log-probabilities `[n, C]`, lowest for unseen classes."""
    if len(x) == 0:  # classifiers refuse to predict an empty array
        return np.zeros((0, classes), dtype=np.float32)
    gives_logits = callable(getattr(estimator, "predict_logits", None))
    method = "predict_logits" if gives_logits else "predict_proba"
    found = np.asarray(getattr(estimator, method)(flatten(x)))
    said = f"`{method}` of {type(estimator).__name__} returned"
    told = f"{said} {found.dtype} of shape {list(found.shape)}; must be numbers {[len(x), classes]}"
    refuse_if(found.dtype.kind not in "biuf", told, "clients.model")
    found = found.astype(np.float64)
    columns = np.asarray(getattr(estimator, "classes_", np.arange(classes)), dtype=np.int64)
    told = f"{said} {list(found.shape)}; must be {[len(x), len(columns)]}"
    refuse_if(found.shape != (len(x), len(columns)), told, "clients.model")
    if not np.isfinite(found).all():
        told = next(str(value) for value in found.ravel() if not np.isfinite(value))
        raise TrainingDiverged(f"{said} {told}; must be finite numbers")
    if gives_logits:
        logits = np.repeat(found.min(axis=1, keepdims=True) + np.log(FLOOR), classes, axis=1)
        logits[:, columns] = found
    else:
        logits = np.full((len(x), classes), np.log(FLOOR))
        logits[:, columns] = np.log(np.maximum(found, FLOOR))
    return np.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT).astype(np.float32)


def _takes_weights(estimator: Estimator) -> bool:
    try:
        parameters = inspect.signature(estimator.fit).parameters.values()
    except (TypeError, ValueError):  # compiled; most of those do
        return True
    return any(p.name == "sample_weight" or p.kind is p.VAR_KEYWORD for p in parameters)


class _Constant:
    def __init__(self, label: int) -> None:
        self.classes_ = np.array([label])

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> _Constant:
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return np.ones((len(X), 1))


def is_estimator_class(factory: Any) -> bool:
    """Return whether a plug-in is an estimator class, such as scikit-learn's."""
    predicts = hasattr(factory, "predict_proba") or hasattr(factory, "predict_logits")
    return isinstance(factory, type) and hasattr(factory, "fit") and predicts


def check_estimator(name: str, estimator: Any) -> None:
    """Raise a `UserError` unless the object is an estimator."""

    def has(method: str) -> bool:
        return callable(getattr(estimator, method, None))

    made = f"'{name}' made a {type(estimator).__name__}"
    refuse_if(
        not has("fit") or not (has("predict_proba") or has("predict_logits")),
        f"{made} without `{'predict_proba' if has('fit') else 'fit'}`; a client model is a torch.nn.Module,"
        " or has `fit` and `predict_proba` (or `predict_logits`)",
        "clients.model",
    )
    refuse_if(
        has("distill") and not (has("state") and has("restore")),
        f"{made} with `distill` and without `{'restore' if has('state') else 'state'}`; its checkpoints need"
        " `state()`, which returns a dict of arrays, and `restore(arrays)`",
        "clients.model",
    )


@runtime_checkable
class IncrementalEstimator(Estimator, Protocol):
    """An estimator that continues from its present state in every `fit` and `distill`."""

    def distill(self, X: np.ndarray, probabilities: np.ndarray) -> Any:
        """Learn `probabilities` `[m, C]` of the transfer samples `X` `[m, D]`."""

    def state(self) -> Arrays:
        """Return everything learned, as arrays by name."""

    def restore(self, arrays: Arrays) -> Any:
        """Continue, in a fresh object, from a `state`."""


class IncrementalModel(EstimatorModel):
    """An estimator with its own `distill` and state."""

    def __init__(self, make: Callable[[], IncrementalEstimator], classes: int) -> None:
        super().__init__(make, classes)
        self._fresh, self._estimator = make, make()

    def fit(self, x: np.ndarray, y: np.ndarray, transfer_x: np.ndarray, seed: int) -> None:
        """Fit on private samples."""
        set_seed(self._estimator, seed)
        self._estimator.fit(flatten(x), y)
        self._fitted = self._estimator

    def learn(
        self,
        x: np.ndarray,
        y: np.ndarray,
        transfer_x: np.ndarray,
        samples: np.ndarray,
        targets: np.ndarray,
        seed: int,
    ) -> None:
        """Distil guidance."""
        set_seed(self._estimator, seed)
        self._estimator.distill(flatten(transfer_x)[samples], np.asarray(targets, dtype=np.float64))
        self._fitted = self._estimator

    def state(self) -> dict[str, np.ndarray]:
        """Return the estimator's own state, if any; a `UserError` unless it maps names to arrays."""
        if self._fitted is None:
            return {}
        given = self._estimator.state()
        arrays, wrong = {}, "" if isinstance(given, Mapping) else f"a {type(given).__name__}"
        if not wrong:
            arrays = {name: np.array(values) for name, values in given.items()}
            others = ((name, a.dtype) for name, a in arrays.items() if a.dtype.kind not in "biuf")
            wrong = next((f"'{name}' of type {dtype}" for name, dtype in others), "")
        told = f"`state` of {type(self._estimator).__name__} returned {wrong}; must return a dict of"
        refuse_if(wrong, f"{told} numeric NumPy arrays by name", "clients.model")
        return {f"{OWN_PREFIX}{name}": array for name, array in arrays.items()}

    def restore(self, arrays: Arrays, x: np.ndarray, y: np.ndarray, transfer_x: np.ndarray) -> None:
        """Let a fresh estimator continue from its own state."""
        self._estimator = self._fresh()
        own = {
            name.removeprefix(OWN_PREFIX): values
            for name, values in arrays.items()
            if name.startswith(OWN_PREFIX)
        }
        self._fitted = self._estimator if own else None
        if own:
            self._estimator.restore(own)


def client_estimator(make: Callable[[], Any], classes: int) -> EstimatorModel:
    """Return an estimator behind its adapter; `make` returns a fresh one."""
    own = callable(getattr(make(), "distill", None))
    return (IncrementalModel if own else EstimatorModel)(make, classes)
