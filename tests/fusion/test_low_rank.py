"""Changes as factors: the smallest rank that keeps the energy, whole where factors would be more numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.fusion.two_models.low_rank import FACTORS, RANKS, WHOLE, compress, decompress, moved
from fedkd.randomness import numpy_generator


def low(rows: int, columns: int, sigma: list[float], seed: int = 0) -> np.ndarray:
    """Return a matrix with these singular values."""
    generator = numpy_generator(seed, "low rank")
    u, _ = np.linalg.qr(generator.normal(size=(rows, len(sigma))))
    v, _ = np.linalg.qr(generator.normal(size=(columns, len(sigma))))
    return (u * sigma) @ v.T


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.8, 1), (0.81, 2), (0.99, 2), (1.0, 3)])
def test_the_rank_is_the_smallest_that_keeps_the_energy(energy, rank):
    change = {"w": low(20, 30, [2.0, 0.99, 0.1])}  # squares 4, 0.98 and 0.01: 80 %, 99.8 % and all
    found = compress(change, energy)
    assert found[RANKS].tolist() == [rank] and len(found[FACTORS]) == rank * (20 + 30 + 1)
    left = change["w"] - decompress(found, change)["w"]
    lost = (left**2).sum() / (change["w"] ** 2).sum()
    assert lost <= 1 - energy + 1e-9


def test_a_new_head_keeps_its_weights():
    """All ranks of a drawn 10×512 matrix are needed for 95 %, which codes that are public take for none."""
    change = {"head.weight": numpy_generator(1, "head").uniform(-0.04, 0.04, (10, 512)).astype(np.float32)}
    found = compress(change, 0.999)
    assert found[RANKS].tolist() == [WHOLE]
    assert_array_equal(decompress(found, change)["head.weight"], change["head.weight"])


def test_a_convolution_is_factored_as_one_matrix_if_that_is_smaller():
    kernel = numpy_generator(2, "kernel").normal(size=(32, 1, 5, 5))
    found = compress({"conv.weight": kernel}, 0.98)
    assert found[FACTORS].size <= 800
    sum_of_three = low(32, 25, [3.0, 1.0]).reshape(32, 1, 5, 5)
    assert compress({"conv.weight": sum_of_three}, 1.0)[RANKS].tolist() == [2]


def test_zero_changes_cost_nothing_and_vectors_are_sent_whole():
    change = {
        "w": np.zeros((4, 5)),
        "b": np.array([1.0, -2.0]),
        "empty": np.zeros((0, 3)),
        "s": np.array(3.0),
    }
    found = compress(change, 0.9)
    assert found[RANKS].tolist() == [0, WHOLE, WHOLE, WHOLE] and found[FACTORS].tolist() == [1.0, -2.0, 3.0]
    for name, values in decompress(found, change).items():
        assert_array_equal(values, change[name])


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)), seed=st.integers(0, 99))
def test_full_energy_is_exact(shape, seed):
    generator = numpy_generator(seed, "exact")
    change = {"w": generator.normal(size=shape), "b": generator.normal(size=shape[:1])}
    for name, values in decompress(compress(change, 1.0), change).items():
        assert_allclose(values, change[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("energy", [0.45, 0.7, 1.0])
def test_factors_depend_on_the_matrix_alone(monkeypatch, energy):
    """Of three equally large singular values, and among the many zeros, the solver may return any basis."""
    change = {"w": low(20, 30, [3.0, 2.0, 2.0, 2.0, 1.0])}
    before, solve, generator = compress(change, energy), np.linalg.svd, numpy_generator(0, "bases")

    def another(matrix, full_matrices):
        u, sigma, v = solve(matrix, full_matrices=full_matrices)
        for same in (slice(0, 1), slice(1, 4), slice(4, 5)):
            turn, _ = np.linalg.qr(generator.normal(size=(len(sigma[same]), len(sigma[same]))))
            u[:, same], v[same] = u[:, same] @ turn, turn.T @ v[same]
        nothing = np.linalg.qr(np.hstack([u[:, :5], generator.normal(size=(20, 15))]))[0][:, 5:]
        return np.hstack([u[:, :5], nothing]), sigma, v

    monkeypatch.setattr(np.linalg, "svd", another)
    after = compress(change, energy)
    assert_array_equal(after[RANKS], before[RANKS])
    assert_allclose(after[FACTORS], before[FACTORS], atol=1e-6)


@pytest.mark.parametrize("energy", [0.45, 0.7, 1.0])
def test_row_order_and_empty_columns_change_no_factor(energy):
    matrix = low(20, 30, [3.0, 2.0, 2.0, 2.0, 1.0])
    order = numpy_generator(1, "rows").permutation(20)
    wider = np.insert(matrix, 11, 0.0, axis=1)
    plain, shuffled, padded = (
        decompress(compress({"w": m}, energy), {"w": m})["w"] for m in (matrix, matrix[order], wider)
    )
    assert_allclose(shuffled, plain[order], atol=1e-6)
    assert_allclose(np.delete(padded, 11, axis=1), plain, atol=1e-6)
    assert_array_equal(padded[:, 11], 0.0)


def test_foreign_factors_are_refused():
    change = {"w": low(20, 30, [1.0])}
    found = compress(change, 1.0)
    with pytest.raises(ValueError, match="got ranks of 1 arrays; must be 2"):
        decompress(found, change | {"b": np.zeros(3)})
    with pytest.raises(ValueError, match="too few for w"):
        decompress(found | {FACTORS: found[FACTORS][:9]}, change)
    with pytest.raises(ValueError, match="got 52 factors; must be 51"):
        decompress(found | {FACTORS: np.append(found[FACTORS], 0)}, change)


def test_weights_receive_changes_and_counters_do_not():
    weights = {"w": np.ones(2, np.float32), "seen": np.array(7)}
    found = moved(weights, {"w": np.array([0.5, -1.0])})
    assert_array_equal(found["w"], np.array([1.5, 0.0], np.float32))
    assert found["w"].dtype == np.float32 and found["seen"] == 7
