"""The class shares of a client's training samples, guessed from its upload.

The mean prediction on the transfer set and its variants follow Yang et al., arXiv:2502.08001.
"""

from collections.abc import Mapping

import numpy as np

LEAST = 1e-7
"""Least share of a class in a guess, so that divergences are finite."""


def from_predictions(probabilities: Mapping[int, np.ndarray]) -> dict[str, dict[int, np.ndarray]]:
    """Return guesses `[C]` by method and client, from predictions `[M, C]` on the transfer set.

    `mean` is the mean prediction, `votes` the shares of the likeliest classes. `ratio` is the mean prediction
    over that of all clients, normalised.
    """
    mean = {client: rows.mean(axis=0) for client, rows in probabilities.items()}
    everyone = np.mean(list(mean.values()), axis=0)
    return {
        "mean": mean,
        "votes": {
            client: normalised(np.bincount(rows.argmax(axis=1), minlength=rows.shape[1]))
            for client, rows in probabilities.items()
        },
        "ratio": {client: normalised(own / np.maximum(everyone, LEAST)) for client, own in mean.items()},
    }


def from_present_classes(present: np.ndarray) -> np.ndarray:
    """Return the guess `[C]` from the classes `[C]` bool that an upload is about: even shares of those."""
    return normalised(present.astype(np.float64))


def normalised(weights: np.ndarray) -> np.ndarray:
    """Return weights `[C]` divided by their sum; even ones if that is 0."""
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1.0 / len(weights))


def total_variation(truth: np.ndarray, guess: np.ndarray) -> float:
    """Return ½ Σ |p − p̂| in [0, 1] of two distributions `[C]`."""
    return float(np.abs(truth - guess).sum() / 2)


def divergence(truth: np.ndarray, guess: np.ndarray) -> float:
    """Return KL(p ‖ p̂) in nats of two distributions `[C]`; shares of the guess are at least `LEAST`."""
    seen = truth > 0
    return float((truth[seen] * np.log(truth[seen] / np.maximum(guess[seen], LEAST))).sum())
