"""FOT's protected subspaces against float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.fusion.weights.orthogonal import extend_basis, mean_residual_share, remove_projection

N = 12


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def spanned(inputs, threshold, basis=None):
    """Return the basis after clients with these inputs, whose Ω is so wide that sums are expectations."""
    basis = np.zeros((N, 0), np.float32) if basis is None else basis
    sketch, shares, samples = np.zeros((N, 4000)), [], []
    for client, own in enumerate(inputs):
        left = own - basis @ (basis.T @ own)
        omega = np.random.default_rng(100 + client).uniform(-1.0, 1.0, (own.shape[1], 4000))
        sketch += left @ omega
        shares.append((left**2).sum() / (own**2).sum())
        samples.append(own.shape[1])
    return extend_basis(basis, sketch, mean_residual_share(shares, samples), threshold).basis


def kept(basis, inputs):
    together = np.hstack(inputs)
    return ((basis.T @ together) ** 2).sum() / (together**2).sum()


def test_leading_directions_are_added_up_to_the_energy_threshold():
    directions = np.linalg.qr(drawn(N, N))[0]
    sketch = directions * np.array([5.0, 4.0, 3.0, 2.0, 1.0, *[0.0] * 7])  # squares 25 16 9 4 1, of 55
    none = np.zeros((N, 0), np.float32)
    for threshold, rank in [(25 / 55 - 1e-6, 1), (25 / 55 + 1e-6, 2), (0.9, 3), (0.95, 4), (1.0, 5)]:
        basis = extend_basis(none, sketch, 1.0, threshold, "sketch").basis
        assert basis.shape == (N, rank)
        np.testing.assert_allclose(basis @ basis.T, directions[:, :rank] @ directions[:, :rank].T, atol=1e-6)


def test_the_threshold_counts_the_energy_of_protected_directions():
    """With a part 1 − ρ of the energy protected, ε is reached once (ε − 1 + ρ)/ρ of the rest is."""
    directions = np.linalg.qr(drawn(N, N))[0]
    basis = directions[:, :3].astype(np.float32)
    rest = directions[:, 3:7] * np.array([4.0, 3.0, 2.0, 1.0])  # squares 16 9 4 1 of 30; ρ = 1/2: 60 in all
    for threshold, rank in [(0.5, 3), (45 / 60, 4), (47 / 60, 5), (55.5 / 60, 6), (1.0, 7)]:
        assert extend_basis(basis, rest, 0.5, threshold, "sketch").basis.shape[1] == rank
    unchanged = extend_basis(basis, rest, 0.0, 1.0)
    assert unchanged.basis is basis and unchanged.energy == 1.0


def inputs_of_many_directions(seed=0):
    """Return inputs ``[n, k]`` whose energies fall slowly, so that a sketch of few columns misjudges them."""
    mixing = np.linalg.qr(drawn(60, 60, seed=seed))[0] * np.linspace(3.0, 0.2, 60)
    return mixing @ drawn(60, 400, seed=seed + 1)


@pytest.mark.parametrize("width", [60, 20])
def test_energy_is_measured_on_inputs_if_the_sketch_has_more(width):
    """A mean over sketches: each is a draw of Ω, and what the measure says is unbiased."""
    none, inputs, threshold = np.zeros((60, 0), np.float32), inputs_of_many_directions(), 0.7
    true = dict.fromkeys(("measured", "sketch"), 0.0)
    told, draws = dict(true), 20
    for draw in range(draws):
        sketch = inputs @ np.random.default_rng(draw).uniform(-1.0, 1.0, (400, width))
        for measure in true:
            basis, energy = extend_basis(none, sketch, 1.0, threshold, measure)
            true[measure] += kept(basis, [inputs]) / draws
            told[measure] += energy / draws
    assert true["sketch"] < threshold - 0.2 and true["measured"] > true["sketch"] + 0.15
    for measure in true:  # the figure of the authors' rule is that of the inputs too
        assert told[measure] == pytest.approx(true[measure], abs=0.06)
    # A narrow sketch has too few directions for the threshold.
    assert true["measured"] == pytest.approx(threshold, abs=0.05) or width == 20


def test_a_narrow_sketch_gives_all_directions_and_reports_energy():
    none, inputs = np.zeros((60, 0), np.float32), inputs_of_many_directions()
    sketch = inputs @ np.random.default_rng(0).uniform(-1.0, 1.0, (400, 20))
    basis, energy = extend_basis(none, sketch, 1.0, 0.99)
    assert basis.shape == (60, 18) and energy < 0.9
    one = extend_basis(np.zeros((1, 0), np.float32), np.array([[2.0]]), 1.0, 0.9)
    assert one.basis.shape == (1, 1) and one.energy == pytest.approx(1.0)


def test_bases_stay_orthonormal_over_tasks_and_hold_their_share():
    basis, grown = None, 0
    for task in range(3):
        mixing = drawn(N, 4, seed=task)
        inputs = [mixing @ drawn(4, k, seed=10 * task + k) + 0.1 * drawn(N, k, seed=k) for k in (40, 70)]
        basis = spanned(inputs, 0.95, basis)
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-6)
        assert kept(basis, inputs) == pytest.approx(0.97, abs=0.03) and basis.shape[1] >= grown
        grown = basis.shape[1]
    assert grown <= N


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_low_rank_bases_ignore_order_and_repetition(threshold):
    """Five clients whose sketches have one direction each, equally strong; two of them say it twice."""
    directions = np.linalg.qr(drawn(N, 5))[0]
    sketches = [np.outer(directions[:, n], np.eye(8)[n]) for n in range(5)]
    sketches += [-np.outer(directions[:, n], np.eye(8)[n + 3]) for n in range(2)]
    protected = np.linalg.qr(np.hstack([drawn(N, 1, seed=9), directions]))[0][:, :1].astype(np.float32)
    first = extend_basis(protected, sum(sketches), 1.0, threshold, "sketch").basis
    for seed in range(5):
        draws = np.random.default_rng(seed)
        total = sum(sketches[n] for n in draws.permutation(7))
        for same in (total, total[:, draws.permutation(8)], np.hstack([total, 0.0 * total])):
            found = extend_basis(protected, same, 1.0, threshold, "sketch").basis
            np.testing.assert_allclose(found, first, atol=1e-6)
    assert first.shape[1] <= 6 and (threshold < 1.0 or first.shape[1] == 6)


def test_shares_are_weighted_by_samples():
    assert mean_residual_share([0.5, 0.1], [1, 3]) == pytest.approx(0.2)
    assert mean_residual_share([0.5, 0.1], [0, 0]) == mean_residual_share([], []) == 0.0
    assert mean_residual_share([7.0], [2]) == 1.0  # from whoever makes it up


@pytest.mark.parametrize("shape", [(5, N), (5, 3, 2, 2)])
def test_projected_steps_leave_protected_inputs_unchanged(shape):
    basis = np.linalg.qr(drawn(N, 4))[0]
    step = drawn(*shape, seed=3)
    left = remove_projection(step, basis)
    matrix = step.reshape(5, N)
    np.testing.assert_allclose(left.reshape(5, N), matrix @ (np.eye(N) - basis @ basis.T), atol=1e-12)
    np.testing.assert_allclose(left.reshape(5, N) @ basis, 0.0, atol=1e-12)
    np.testing.assert_allclose(remove_projection(left, basis), left, atol=1e-12)
    assert remove_projection(step, basis[:, :0]).tobytes() == step.tobytes()
