"""A gate that maps a client's logits of a sample to shares of its teachers."""

from typing import NamedTuple

import numpy as np

from fedkd.fusion.math.adam import Adam

TIE = 1e-9
"""Shares this close are equal: their last digits depend on the order of sums."""


class Gate(NamedTuple):
    """Two layers, ``g = softmax(relu(x A + a) B + b)``: A `[C, H]`, a `[H]`, B `[H, K]`, b `[K]`."""

    into: np.ndarray
    into_bias: np.ndarray
    out: np.ndarray
    out_bias: np.ndarray

    def hidden(self, inputs: np.ndarray) -> np.ndarray:
        """Return the hidden units of inputs `[M, C]`, `[M, H]`."""
        return np.maximum(inputs @ self.into + self.into_bias, 0.0)

    def shares(self, inputs: np.ndarray) -> np.ndarray:
        """Return g of inputs `[M, C]`, rows that sum to 1, `[M, K]`."""
        return row_softmax(self.hidden(inputs) @ self.out + self.out_bias)


def new_gate(classes: int, teachers: int, generator: np.random.Generator) -> Gate:
    """Return a gate of 2C units with equal shares of all teachers."""
    units, bound = 2 * classes, 1.0 / np.sqrt(classes)
    return Gate(
        generator.uniform(-bound, bound, (classes, units)),
        generator.uniform(-bound, bound, units),
        np.zeros((units, teachers)),
        np.zeros(teachers),
    )


def train_gate(
    gate: Gate, inputs: np.ndarray, losses: np.ndarray, *, balance: float, steps: int, lr: float
) -> Gate:
    """Return the gate after full-batch steps of Adam on `gate_loss`."""
    adam = Adam(lr)
    for _ in range(steps):
        gate = Gate(*adam.step(gate, gate_loss(gate, inputs, losses, balance)[1]))
    return gate


def gate_loss(gate: Gate, inputs: np.ndarray, losses: np.ndarray, balance: float) -> tuple[float, Gate]:
    """Return ``mean_i Σ_m g_m(i) ℓ_m(i) + w K Σ_m f_m mean_i g_m(i)`` and its gradient.

    ℓ are the losses `[M, K]` of each teacher's prediction, w is `balance`, M > 0. f, the share of samples on
    which m has the largest share, is constant. The second term has its minimum w for even use of all
    teachers.
    """
    samples, teachers = losses.shape
    hidden = gate.hidden(inputs)
    shares = row_softmax(hidden @ gate.out + gate.out_bias)
    costs = losses + balance * teachers * first_choices(shares)
    paid = (shares * costs).sum(axis=1, keepdims=True)
    below = shares * (costs - paid) / samples  # of the logits of shares, [M, K]
    before = (below @ gate.out.T) * (hidden > 0.0)
    gradient = Gate(inputs.T @ before, before.sum(axis=0), hidden.T @ below, below.sum(axis=0))
    return float(paid.mean()), gradient


def first_choices(shares: np.ndarray) -> np.ndarray:
    """Return each teacher's share of first choices among samples, `[K]`; ties are divided."""
    first = shares >= shares.max(axis=1, keepdims=True) - TIE
    return (first / first.sum(axis=1, keepdims=True)).mean(axis=0)


def largest(shares: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` largest shares of each row, ties included, brought to sum 1."""
    if count >= shares.shape[1]:
        return shares
    last = np.sort(shares, axis=1)[:, -count, None]
    kept = np.where(shares >= last - TIE, shares, 0.0)
    return kept / kept.sum(axis=1, keepdims=True)


def row_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of each row in the precision of the logits."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
