"""Updates in subspace coordinates against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedkd.continual.subspace.fast.subspace_coordinates import Agreement, agree, grouped, hold_back
from fedkd.training.fast.own_kernels import function_of

SHARES = [[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0]]


@pytest.mark.parametrize("strength", [0.0, 0.5, 5.0, 1e4])
@pytest.mark.parametrize("kernel", [hold_back, function_of(hold_back)], ids=["torch", "recorded"])
def test_a_proximal_step_applies_one_task_after_another(kernel, strength):
    draws = np.random.default_rng(0)
    begun, centre, gradient = draws.standard_normal((3, 4, 6))
    pace = 0.1 * draws.integers(0, 2, 6)
    groups, members = grouped(torch.tensor(SHARES).bool())
    assert groups.sum(dim=0).tolist() == [1] * 6
    assert (members.double() @ groups.double()).tolist() == SHARES
    now = torch.from_numpy(begun.copy())
    others = (torch.from_numpy(values.copy()) for values in (centre, gradient, pace))
    kernel(now, *others, groups.double(), members, torch.tensor(0.1 * strength, dtype=torch.float64))
    expected = begun - pace * gradient - centre
    for own in SHARES:
        columns = np.flatnonzero(own)
        length = np.sqrt((expected[:, columns] ** 2).sum())
        expected[:, columns] *= max(0.0, 1.0 - 0.1 * strength / length) if length else 0.0
    np.testing.assert_allclose(now, expected + centre, rtol=1e-12, atol=1e-15)
    if strength == 1e4:
        assert torch.equal(now[:, :5], torch.from_numpy(centre)[:, :5]), "to the bit: nothing has moved"


def test_a_layer_agrees_if_every_correlation_reaches_its_minimum():
    def layer(products, least):
        return Agreement(torch.tensor(products), torch.tensor(9.0), torch.tensor(16.0), torch.tensor(least))

    fine, one, nan = layer([5.0, -1.0], [1.0, -0.5]), layer([4.9, 0.0], [1.0, 0.0]), layer([np.nan], [0.0])
    assert [found.holds() for found in (fine, one, nan)] == [[True, True], [False, True], [False]]
    for layers, expected in (([fine], True), ([fine, fine], True), ([fine, one], False), ([nan], False)):
        assert bool(agree(*map(list, zip(*layers, strict=True)))) == expected
