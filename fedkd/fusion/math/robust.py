"""Robust means per sample, from `[N, M, C]` to `[M, C]`, which a minority cannot move far."""

import numpy as np

_BLOCK = 1_000_000  # elements of a float64 block: 8 MB, so that one stays in cache
_COINCIDE = 1e-12  # a smaller distance to a client counts as 0
_NO_SPREAD = 1e-12  # variances below this are rounding of float32 probabilities
_EQUAL = 1e-4  # variances that differ by less than this share have no order: rounding would choose one
_GONE = 1e-3  # clients below this share of the largest weight are out, ties included


def median(points: np.ndarray) -> np.ndarray:
    """Return the median over clients of every coordinate, `[M, C]`.

    It is within the honest clients' range while they are the majority.
    """
    return np.median(np.ascontiguousarray(np.moveaxis(points, 0, -1)), axis=-1)


def trimmed_mean(points: np.ndarray, trim: float) -> np.ndarray:
    """Return the mean of every coordinate without its ``⌊trim · N⌋`` lowest and highest values, `[M, C]`.

    It is within the honest clients' range if at most ``⌊trim · N⌋`` clients are poisoned; trim < ½.
    """
    clients = len(points)
    cut = int(trim * clients + 1e-9)  # 0.29 · 100 is a hair below 29
    if cut == 0:
        return points.mean(axis=0, dtype=np.float64)
    ordered = np.partition(np.moveaxis(points, 0, -1), (cut, clients - cut - 1), axis=-1)
    return ordered[..., cut : clients - cut].mean(axis=-1, dtype=np.float64)


def geometric_median(points: np.ndarray, *, tolerance: float, max_iterations: int) -> np.ndarray:
    """Return each sample's point of least summed distance to all clients, `[M, C]` float64.

    Weiszfeld's iteration ``y ← Σ x_n / ‖x_n − y‖ / Σ 1 / ‖x_n − y‖`` from the mean. The amendment of Vardi
    and Zhang ("The multivariate L1-median and associated data depth", PNAS 2000) keeps it from stopping at a
    client's point. Half of the clients are needed to move it arbitrarily far. A sample has converged when no
    coordinate moves by more than the tolerance.
    """
    clients, samples, classes = points.shape
    step = max(1, _BLOCK // (clients * classes))
    result = np.empty((samples, classes))
    for start in range(0, samples, step):
        x = points[:, start : start + step].transpose(1, 0, 2).astype(np.float64)
        y = x.mean(axis=1)
        moving = np.arange(len(x))
        for _ in range(max_iterations):
            x_left, y_left = x[moving] if len(moving) < len(x) else x, y[moving]
            updated = _weiszfeld_step(x_left, y_left)
            y[moving] = updated
            moving = moving[np.abs(updated - y_left).max(axis=-1) > tolerance]
            if not len(moving):
                break
        result[start : start + step] = y
    return result


def _weiszfeld_step(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    difference = x - y[:, None, :]
    distance = np.sqrt(np.einsum("mnc,mnc->mn", difference, difference))
    apart = distance > _COINCIDE
    weight = np.divide(1.0, distance, out=np.zeros_like(distance), where=apart)
    pull = np.matmul(weight[:, None, :], difference)[:, 0]  # Σ (x_n − y) / ‖x_n − y‖
    total = weight.sum(axis=1)
    strength = np.sqrt((pull**2).sum(axis=-1))
    # Clients at y hold it back, unless the pull of the others exceeds their number.
    held = np.divide((~apart).sum(axis=1), strength, out=np.ones_like(strength), where=strength > 0)
    share = np.divide(
        1.0 - np.minimum(held, 1.0), total, out=np.zeros_like(total), where=(total > 0) & (strength > 0)
    )
    return y + share[:, None] * pull


def complete(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return non-negative rows `[M, C]` as distributions: the rest to 1 follows the mean.

    If clients are certain of different classes, the median is near 0 for every class. Divided by its sum, it
    would be certain of a random class. Here the rest to 1 follows the mean, so no minority gains more than in
    the mean. Rows that sum to more than 1 are divided by their sum.
    """
    total = values.sum(axis=-1, keepdims=True)
    return (values + np.maximum(1.0 - total, 0.0) * mean) / np.maximum(total, 1.0)


def spectral_filter(points: np.ndarray, poisoned: float) -> tuple[np.ndarray, np.ndarray]:
    """Return for every sample the mean of the remaining clients, `[M, C]`, and their weights, `[N, M]`.

    Diakonikolas et al., "Being Robust (in High Dimensions) Can Be Practical", ICML 2017, arXiv 1703.00893,
    with the weights of arXiv 1911.05911. For every sample, from ``w_n = 1/N``::

        μ = Σ w_n x_n / Σ w_n,   Σ = Σ w_n (x_n − μ)(x_n − μ)ᵀ / Σ w_n
        v = the direction in which Σ is largest
        τ_n = (vᵀ(x_n − μ))²
        w_n ← w_n (1 − s · τ_n / max_m τ_m)          s = 1; less in the step that takes the last of 2ε

    Poisoned clients that agree stretch Σ towards them, so they lose more weight than honest ones. Honest
    clients lose at most ε before poisoned ones are out, so a mass of 2ε is removed. Equally large directions
    all count, so results do not depend on the basis of a linear algebra library. Points are `[N, M, C]`; ε,
    `poisoned`, is the share of arbitrary clients, below ½.
    """
    clients, samples, classes = points.shape
    step = max(1, _BLOCK // (clients * classes))
    mean, weights = np.empty((samples, classes)), np.empty((clients, samples))
    for start in range(0, samples, step):
        block = slice(start, start + step)
        x = points[:, block].transpose(1, 0, 2).astype(np.float64)
        w = _filter(x, 2 * poisoned)
        weights[:, block] = w.T
        mean[block] = np.matmul(w[:, None, :], x)[:, 0]
    return mean, weights


def _filter(x: np.ndarray, budget: float) -> np.ndarray:
    """Return weights `[M, N]`, rows that sum to 1, of samples-first points `[M, N, C]`.

    Each step but the last removes the farthest client, so there are at most N.
    """
    samples, clients, _ = x.shape
    weights = np.full((samples, clients), 1.0 / clients)
    left = np.full(samples, budget)
    at_work = np.flatnonzero(left > 0)
    while len(at_work):
        w = weights[at_work]
        scores = np.where(w > 0, _scores(x[at_work] if len(at_work) < samples else x, w), 0.0)
        farthest = scores.max(axis=1, keepdims=True)
        taken = w * np.divide(scores, farthest, out=np.zeros_like(scores), where=farthest > 0)
        total = taken.sum(axis=1)
        share = np.divide(left[at_work], total, out=np.ones_like(total), where=total > left[at_work])
        w = w - share[:, None] * taken
        w[w < _GONE * w.max(axis=1, keepdims=True)] = 0.0
        weights[at_work] = w
        left[at_work] -= share * total
        at_work = at_work[(share == 1.0) & (total > 0) & (left[at_work] > 0)]
    return weights / weights.sum(axis=1, keepdims=True)


def _scores(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return each client's squared distance to the mean along the largest directions, `[M, N]`."""
    clients, classes = x.shape[1:]
    w = w / w.sum(axis=1, keepdims=True)
    difference = x - np.matmul(w[:, None, :], x)
    a = np.sqrt(w)[:, :, None] * difference
    if classes <= clients:
        variances, directions = np.linalg.eigh(np.matmul(a.transpose(0, 2, 1), a))
    else:  # the same variances from the smaller matrix; a direction is aᵀu / √λ
        variances, left = np.linalg.eigh(np.matmul(a, a.transpose(0, 2, 1)))
        directions = np.matmul(a.transpose(0, 2, 1), left)
        directions /= np.sqrt(np.maximum(variances, _NO_SPREAD))[:, None]
    largest = variances[:, -1:]
    counts = (variances >= (1 - _EQUAL) * largest) & (largest > _NO_SPREAD)
    several = max(1, int(counts.sum(axis=1).max()))  # nearly always one
    along = np.matmul(difference, directions[:, :, -several:])
    return np.matmul(along**2, counts[:, -several:, None] * 1.0)[:, :, 0]
