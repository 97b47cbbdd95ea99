"""Client models of regression with `fit` and `predict`, such as a random forest beside a network.

There is one estimator for each target. Its variance is that of the residuals on a held-out fifth of the
client's samples; then it is fitted on all. It learns from targets by refitting: private samples and the means
of transfer samples count alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from torch import nn

from fedkd.data import Head, join_outputs, split_outputs
from fedkd.errors import TrainingDiverged, refuse_if
from fedkd.models.refit import RefitModel, flatten, set_seed

VALIDATION = 0.2
"""Share of the samples whose residuals give the variance."""


@runtime_checkable
class Regressor(Protocol):
    """The interface of a regressor of one target, in scikit-learn's terms."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Any:
        """Fit on `X` `[n, D]` and targets `y` `[n]`."""

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return predictions `[n]`."""


def random_forest(input_shape: tuple[int, ...], outputs: int, *, trees: int = 100, **args: Any) -> Regressor:
    """Return a random forest (Breiman 2001). `args` are scikit-learn's."""
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(n_estimators=trees, n_jobs=1, **args)


def gradient_boosting(
    input_shape: tuple[int, ...], outputs: int, *, iterations: int = 50, **args: Any
) -> Regressor:
    """Return histogram gradient boosting (Ke et al. 2017, LightGBM). `args` are scikit-learn's."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(max_iter=iterations, early_stopping=False, **args)


def sgd(input_shape: tuple[int, ...], outputs: int, *, alpha: float = 1e-3, **args: Any) -> Regressor:
    """Return a linear model fitted by stochastic gradient descent. `args` are scikit-learn's."""
    from sklearn.linear_model import SGDRegressor

    return SGDRegressor(alpha=alpha, **args)


def is_regressor_class(factory: Any) -> bool:
    """Return whether a plug-in is a class of regressors, such as scikit-learn's."""
    own = isinstance(factory, type) and not issubclass(factory, nn.Module)
    return own and hasattr(factory, "fit") and hasattr(factory, "predict")


def check_regressor(name: str, regressor: Any) -> None:
    """Raise a `UserError` unless the object is a regressor."""
    missing = next((method for method in ("fit", "predict") if not hasattr(regressor, method)), None)
    told = (
        f"'{name}' made a {type(regressor).__name__} without `{missing}`; a client model of regression is a"
    )
    refuse_if(missing is not None, f"{told} torch.nn.Module, or has `fit` and `predict`", "clients.model")
    told = f"'{name}' made a {type(regressor).__name__}, a classifier; data.task = 'regression' needs others"
    refuse_if(hasattr(regressor, "predict_proba"), told, "clients.model")


class RegressorModel(RefitModel):
    """Regressors of all targets; guidance are outputs."""

    guidance_name: ClassVar[str] = "guidance/outputs"

    def __init__(self, make: Callable[[], Regressor], targets: int, head: Head) -> None:
        super().__init__()
        self._make, self._targets, self._head = make, targets, head
        self._fitted: list[Regressor] | None = None
        self._variance = np.ones(targets)

    def fit(self, x: np.ndarray, y: np.ndarray, transfer_x: np.ndarray, seed: int) -> None:
        """Fit on private samples `y` `[n, O]` and, after guidance, on the transfer set `[M, ...]`."""
        self._seed = seed
        rows, targets = flatten(x), y.astype(np.float64)
        if self._guidance is not None:
            samples, outputs = self._guidance
            rows = np.concatenate([rows, flatten(transfer_x)[samples]])
            targets = np.concatenate([targets, split_outputs(outputs, self._head)[0]])
        if not len(rows):
            return
        held = np.random.default_rng(seed).permutation(len(x))[: round(VALIDATION * len(x))]
        if self._head == "gaussian" and len(held):
            kept = np.setdiff1d(np.arange(len(rows)), held)
            found = _predicted(self._trained(rows[kept], targets[kept], seed), rows[held])
            self._variance = ((targets[held] - found) ** 2).mean(axis=0)
        self._fitted = self._trained(rows, targets, seed)

    def _trained(self, rows: np.ndarray, targets: np.ndarray, seed: int) -> list[Regressor]:
        found = []
        for o in range(self._targets):
            regressor = self._make()
            set_seed(regressor, seed)
            regressor.fit(rows, targets[:, o])
            found.append(regressor)
        return found

    @property
    def fitted(self) -> list[Regressor] | None:
        """The regressor of each target after the last fit; None: there was none."""
        return self._fitted

    def predict_logits(self, x: np.ndarray) -> np.ndarray:
        """Return outputs `[n, C]` float32; mean 0 and variance 1 before the first `fit`."""
        mean = np.zeros((len(x), self._targets))
        if self._fitted is not None and len(x):
            mean = _predicted(self._fitted, flatten(x))
        return join_outputs(mean, np.broadcast_to(np.maximum(self._variance, 1e-12), mean.shape), self._head)


def _predicted(regressors: list[Regressor], rows: np.ndarray) -> np.ndarray:
    """Return predictions `[n, O]` float64 of fitted regressors."""
    columns = []
    for regressor in regressors:
        found = np.asarray(regressor.predict(rows))
        said = f"`predict` of {type(regressor).__name__} returned"
        fits = found.dtype.kind in "iuf" and found.shape == (len(rows),)
        told = f"{said} {found.dtype} of shape {list(found.shape)}; must be numbers {[len(rows)]}"
        refuse_if(not fits, told, "clients.model")
        if not np.isfinite(found).all():
            raise TrainingDiverged(f"{said} NaN or infinity; must be finite numbers")
        columns.append(found.astype(np.float64))
    return np.stack(columns, axis=1)
