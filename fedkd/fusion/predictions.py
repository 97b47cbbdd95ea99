"""Predictions of a sample in four bytes: its two likeliest classes and their probabilities."""

from typing import NamedTuple

import numpy as np

STEPS = 255


class Answers(NamedTuple):
    """The two likeliest classes of samples `[R, 2]`, and their probabilities in steps of 1/255, uint8."""

    classes: np.ndarray
    shares: np.ndarray


def answers_of(probabilities: np.ndarray) -> Answers:
    """Return answers of predictions `[R, C]`; of a single class, that class twice."""
    classes = two_likeliest(probabilities)
    shares = np.take_along_axis(probabilities, classes, axis=-1).astype(np.float64)
    if probabilities.shape[-1] == 1:
        shares[:, 1] = 0.0
    smallest = np.min_scalar_type(max(probabilities.shape[-1] - 1, 0))
    return Answers(classes.astype(smallest), np.floor(STEPS * shares + 0.5).astype(np.uint8))


def two_likeliest(probabilities: np.ndarray) -> np.ndarray:
    """Return the likeliest class of each row and the next, `[R, 2]` int64; of equal ones the first."""
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    return np.take(order, [0, 1], axis=-1, mode="clip")


def predictions(answers: Answers, classes: int) -> np.ndarray:
    """Return the probabilities `[R, C]` float64 of answers, the rest spread evenly.

    Rows always sum to 1. Two shares that sum to more than 1 keep their ratio; a class named twice gets both.
    """
    named = answers.classes.astype(np.int64)
    shares = answers.shares.astype(np.float64)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), STEPS)
    q, others = np.zeros((len(named), classes)), np.ones((len(named), classes))
    rows = np.arange(len(named))
    for place in (0, 1):
        q[rows, named[:, place]] += shares[:, place]
        others[rows, named[:, place]] = 0.0
    number = others.sum(axis=1, keepdims=True)
    left = 1.0 - q.sum(axis=1, keepdims=True)
    q += np.divide(left * others, number, out=np.zeros_like(q), where=number > 0)
    # Without other classes, rounding or everything is missing to 1.
    q += np.where(q.sum(axis=1, keepdims=True) > 0, 0.0, 1.0 / classes)
    return q / q.sum(axis=1, keepdims=True)
