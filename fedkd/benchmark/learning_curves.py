"""Forecasts of learning curves from their first rounds, in float64.

A curve rises towards a ceiling c: ``y(x) = c − s·g(x)`` with a scale s > 0 and a decay g of its family, where
x is the round. Each family is fitted by least squares, and the forecasts of all are averaged (Domhan et al.,
IJCAI 2015). Recent rounds weigh more, as in CAKT. Curves that are complete give a Gaussian prior of the
parameters, and the error of the forecast at the same round, hence its interval (split conformal prediction).

Departures: families are averaged by AICc instead of MCMC, with a prior by the Laplace approximation of their
evidence. Errors are those of curves left out of the prior one at a time, so coverage is approximate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import ceil
from typing import Any

import numpy as np

Vector = np.ndarray[Any, np.dtype[np.float64]]
RECENCY = 4.0  # rounds after which a point weighs twice as much as an older one
LEAST_PRIOR = 5  # complete curves that make a prior
LARGEST_LOG = 10.0  # bound of the logarithms of scales and rates
LEAST_NOISE = 1e-3  # of accuracies in [0, 1]
HINGE = 10.0  # weight of the ceiling's excess over 1
RIDGE = 0.05  # standard deviation that is added to each parameter's in a prior


@dataclass(frozen=True)
class Family:
    """A family of curves with parameters (c, log s, log θ₁, …).

    Attributes:
        decay: g(x, θ) of rounds [N] and positive θ.
        grid: Values of each θ from which a fit starts.
        from_zero: The curve starts at 0, so s = c, and log s is left out.
    """

    decay: Callable[..., Vector]
    grid: tuple[Sequence[float], ...] = ()
    from_zero: bool = False

    def values(self, x: Vector, parameters: Vector) -> Vector:
        """Return y(x) [N]."""
        c, logs = parameters[0], np.exp(np.clip(parameters[1:], -LARGEST_LOG, LARGEST_LOG))
        scale, theta = (c, logs) if self.from_zero else (logs[0], logs[1:])
        with np.errstate(over="ignore"):  # the decay is 0 there
            return c - scale * self.decay(x, *theta)

    def start(self, x: Vector, y: Vector, weights: Vector) -> Vector:
        """Return the parameters with the least squares on the grid; (c, s) are solved for."""
        best, least = np.zeros(0), np.inf
        for theta in product(*self.grid):
            g, root = self.decay(x, *theta), np.sqrt(weights)
            columns = (1 - g)[:, None] if self.from_zero else np.stack([np.ones_like(x), -g], axis=1)
            solved = np.linalg.lstsq(columns * root[:, None], y * root, rcond=None)[0]
            logs = np.log(theta) if self.from_zero else np.log([max(solved[1], 1e-3), *theta])
            found = np.array([solved[0], *logs])
            loss = float(weights @ (self.values(x, found) - y) ** 2)
            if loss < least:
                best, least = found, loss
        return best


RATES = (0.03, 0.1, 0.3, 1.0)
POWERS = (0.3, 1.0, 2.0)
FAMILIES = {
    "pow3": Family(lambda x, a: x**-a, ((0.1, 0.3, 0.6, 1.0, 2.0),)),
    "exp3": Family(lambda x, k: np.exp(-k * x), ((0.02, 0.05, 0.1, 0.2, 0.5, 1.0),)),
    "mmf": Family(lambda x, k, d: 1 / (1 + (k * x) ** d), (RATES, POWERS)),
    "ilog2": Family(lambda x: 1 / np.log(x + 1)),
}
"""The families of every forecast."""
MORE_FAMILIES = {
    "pow4": Family(lambda x, b, a: (x + b) ** -a, ((0.3, 1.0, 5.0), (0.3, 1.0, 2.0))),
    "weibull": Family(lambda x, k, d: np.exp(-((k * x) ** d)), (RATES, POWERS)),
    "janoschek": Family(lambda x, k, d: np.exp(-k * x**d), (RATES, POWERS)),
    "hill": Family(lambda x, k, d: 1 / (1 + (x / k) ** d), ((1.0, 3.0, 10.0), POWERS), from_zero=True),
}
"""Families on request."""


@dataclass(frozen=True)
class Gaussian:
    """A prior of a family's parameters, and the noise of its curves."""

    mean: Vector  # [K]
    whitening: Vector  # [K, K]: whitening @ (parameters − mean) has identity covariance
    log_determinant: float  # of the covariance
    noise: float


@dataclass(frozen=True)
class Fit:
    """A fitted family; the smaller its `criterion`, the more it weighs."""

    parameters: Vector
    criterion: float  # AICc, or minus twice the logarithm of the evidence
    noise: float  # root of the weighted mean square of its residuals


def fit(family: Family, x: Vector, y: Vector, prior: Gaussian | None = None) -> Fit | None:
    """Fit a family to values `y` [N] after rounds `x` [N]; None: there are too few.

    Minimises ``Σ w_i (y_i − y(x_i))²``, with a prior of noise σ divided by σ² and with its own square added.
    """
    from scipy.optimize import least_squares

    weights = 2.0 ** (-(len(x) - 1 - np.arange(len(x))) / RECENCY)
    weights *= len(x) / weights.sum()
    known = 1 + (not family.from_zero) + len(family.grid)
    if prior is None and len(x) <= known + 1:
        return None
    root = np.sqrt(weights) / (1.0 if prior is None else prior.noise)

    def residuals(parameters: Vector) -> Vector:
        errors = root * (family.values(x, parameters) - y)
        excess = [HINGE * max(0.0, parameters[0] - 1) * float(root.max())]
        away = np.zeros(0) if prior is None else prior.whitening @ (parameters - prior.mean)
        return np.concatenate([errors, excess, away])

    starts = [family.start(x, y, weights)] if prior is None else [prior.mean]
    found = [least_squares(residuals, p, method="lm", ftol=1e-13, xtol=1e-13, gtol=1e-13) for p in starts]
    best = min(found, key=lambda each: each.cost)
    square = float(weights @ (family.values(x, best.x) - y) ** 2) / len(x)
    if prior is None:
        spare = len(x) - known - 1
        criterion = len(x) * np.log(max(square, 1e-24)) + 2 * known + 2 * known * (known + 1) / spare
    else:
        curvature = np.linalg.slogdet(best.jac.T @ best.jac)[1]
        scale = 2 * len(x) * np.log(prior.noise)
        criterion = 2 * best.cost + prior.log_determinant + curvature + scale
    return Fit(best.x, float(criterion), float(np.sqrt(square)))


def predict(
    x: Vector,
    y: Vector,
    last: float,
    priors: Mapping[str, Gaussian] | None = None,
    families: Mapping[str, Family] = FAMILIES,
) -> float | None:
    """Return the forecast of a curve at round `last`, in [0, 1]; None: too few rounds are known.

    Families weigh ``exp(−½ Δcriterion)``. With `priors`, only families that have one take part.
    """
    chosen = {name: families[name] for name in (priors or families)}
    fits = {name: fit(family, x, y, (priors or {}).get(name)) for name, family in chosen.items()}
    usable = {name: each for name, each in fits.items() if each is not None}
    if not usable:
        return None
    criteria = np.array([each.criterion for each in usable.values()])
    weights = np.exp(-0.5 * (criteria - criteria.min()))
    at = np.array([last], dtype=np.float64)
    ends = np.array([families[name].values(at, each.parameters)[0] for name, each in usable.items()])
    return float(np.clip(weights @ ends / weights.sum(), 0.0, 1.0))


@dataclass(frozen=True)
class Forecast:
    """A final value forecast after a round, with its interval; None: too few complete curves."""

    round: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Experience:
    """Complete curves, round to accuracy, from which priors and intervals of others come."""

    curves: tuple[Mapping[int, float], ...]

    @cached_property
    def _fits(self) -> dict[str, list[Fit | None]]:
        arrays = [_arrays(curve) for curve in self.curves]
        return {name: [fit(family, *curve) for curve in arrays] for name, family in FAMILIES.items()}

    def priors(self, without: int | None = None) -> dict[str, Gaussian]:
        """Return each family's prior from all curves but one; empty: there are too few."""
        found = {}
        for name, fits in self._fits.items():
            kept = [each for n, each in enumerate(fits) if each is not None and n != without]
            if len(kept) >= LEAST_PRIOR:
                found[name] = _gaussian(kept)
        return found

    def errors(self, round: int) -> list[float]:
        """Return the absolute error of each curve's forecast after `round`, without it in the prior."""
        found = []
        for n, curve in enumerate(self.curves):
            last = max(curve)
            value = _forecast(curve, round, last, self.priors(without=n))
            if value is not None and round < last:
                found.append(abs(value - curve[last]))
        return sorted(found)

    def forecast(
        self, curve: Mapping[int, float], last: int, confidence: float, errors: Sequence[float]
    ) -> Forecast | None:
        """Forecast a curve at round `last` from its rounds so far; None: too few are known.

        `errors` are those after the same round. The half width is the ⌈(n + 1)·confidence⌉-th smallest.
        """
        round = max(curve)
        value = _forecast(curve, round, last, self.priors())
        if value is None:
            return None
        half = conformal_half_width(errors, confidence)
        if half is None:
            return Forecast(round, value)
        return Forecast(round, value, max(0.0, value - half), min(1.0, value + half))


def conformal_half_width(errors: Sequence[float], confidence: float) -> float | None:
    """Return the half width of a split conformal interval from sorted errors; None: too few of them."""
    rank = ceil(round((len(errors) + 1) * confidence, 9))
    return errors[rank - 1] if rank <= len(errors) else None


def _forecast(
    curve: Mapping[int, float], round: int, last: int, priors: Mapping[str, Gaussian]
) -> float | None:
    known = {at: value for at, value in curve.items() if at <= round}
    return predict(*_arrays(known), last, priors or None) if known else None


def _arrays(curve: Mapping[int, float]) -> tuple[Vector, Vector]:
    rounds = sorted(curve)
    return np.array(rounds, dtype=np.float64), np.array([curve[at] for at in rounds], dtype=np.float64)


def _gaussian(fits: Sequence[Fit]) -> Gaussian:
    """Return the median and the covariance of parameters, with a small variance added."""
    parameters = np.stack([each.parameters for each in fits])
    parameters[:, 1:] = np.clip(parameters[:, 1:], -LARGEST_LOG, LARGEST_LOG)
    parameters[:, 0] = np.clip(parameters[:, 0], 0.0, 1.2)
    covariance = np.cov(parameters, rowvar=False) + RIDGE**2 * np.eye(parameters.shape[1])
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    noise = max(LEAST_NOISE, float(np.median([each.noise for each in fits])))
    determinant = float(np.linalg.slogdet(covariance)[1])
    return Gaussian(np.median(parameters, axis=0), whitening, determinant, noise)
