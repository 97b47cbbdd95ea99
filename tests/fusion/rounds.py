"""Knowledge for tests: drawn logits, softmax in loops, what each client receives."""

from __future__ import annotations

import math

import numpy as np
from numpy.testing import assert_allclose

from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.randomness import numpy_generator


def draw_logits(clients=3, samples=4, classes=3, *, spread=1.5, seed=0) -> np.ndarray:
    """Return `[N, M, C]` float32 logits of clients that each lean to classes of their own."""
    generator = numpy_generator(seed, "test logits")
    leaning = generator.normal(0, spread, (clients, 1, classes))
    return (leaning + generator.normal(0, spread, (clients, samples, classes))).astype(np.float32)


def knowledge_of(logits: np.ndarray | None, clients=None, **fields) -> Knowledge:
    clients = tuple(range(len(logits))) if clients is None else tuple(clients)
    return Knowledge(clients=clients, logits=logits, samples=np.full(len(clients), 10), **fields)


def softmax_by_loops(logits: np.ndarray, temperature: float = 1.0) -> list:
    """Return float64 probabilities of `[N, M, C]` logits as nested lists."""
    rows = []
    for client in logits:
        rows.append([])
        for sample in client:
            top = max(float(z) for z in sample)
            powers = [math.exp((float(z) - top) / temperature) for z in sample]
            rows[-1].append([value / sum(powers) for value in powers])
    return rows


def mean_by_loops(q: list) -> list:
    """Return the mean over clients of nested lists `[N, M, C]`."""
    clients, samples, classes = len(q), len(q[0]), len(q[0][0])
    return [
        [sum(q[n][i][c] for n in range(clients)) / clients for c in range(classes)] for i in range(samples)
    ]


def entropy(p: np.ndarray) -> np.ndarray:
    p = np.asarray(p, dtype=np.float64)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)


def assert_distributions(array: np.ndarray, atol: float = 1e-6) -> None:
    assert array.dtype == np.float32
    assert np.isfinite(array).all()
    assert (array >= 0).all()
    assert_allclose(array.sum(axis=-1, dtype=np.float64), 1.0, rtol=0, atol=atol)


EXTREMES = [(4, 6, 5), (1, 6, 5), (4, 6, 1), (4, 1, 5), (1, 1, 1)]
"""Shapes at the edge: one client, one class, one sample."""


def extreme_logits(shape) -> np.ndarray:
    """Return huge logits of either sign, whose probabilities are exactly 0 and 1 or ties."""
    return np.where(numpy_generator(0, "signs").random(shape) < 0.5, -1e4, 1e4).astype(np.float32)


def soft_cross_entropy_by_loops(student: np.ndarray, targets: np.ndarray) -> float:
    q = softmax_by_loops(student[None])[0]
    rows = [
        -sum(float(t) * math.log(p) for t, p in zip(wanted, row, strict=True))
        for wanted, row in zip(targets, q, strict=True)
    ]
    return sum(rows) / len(rows)


def guidance_for(row: int, guidance: Guidance) -> dict[str, np.ndarray]:
    """Return the arrays that the client in this row receives."""
    arrays = dict(guidance.shared)
    if guidance.targets is not None:
        arrays["targets"] = guidance.targets[row] if guidance.targets.ndim == 3 else guidance.targets
    if guidance.personal:
        arrays |= guidance.personal[row]
    return arrays


def num_bytes(arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
