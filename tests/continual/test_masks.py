"""Masks: selection, gradients, storage and size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedkd.continual.masks import masks
from fedkd.randomness import torch_generator


def test_topk_selects_the_largest_absolute_scores():
    scores = torch.tensor([[0.1, -0.9, 0.3], [-0.4, 0.2, 0.0]])
    assert masks.mask_of(scores, "topk", 0.5).tolist() == [[False, True, True], [True, False, False]]


@pytest.mark.parametrize("density", [0.001, 0.02, 0.1, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("shape", [(7,), (13, 11), (8, 3, 5, 5)])
def test_density_is_exact_for_equal_scores(density, shape):
    count = math.prod(shape)
    drawn = torch.randint(-2, 3, shape, generator=torch_generator(1, "scores")).float()
    for scores in (drawn, torch.zeros(shape), torch.randn(shape, generator=torch_generator(2, "scores"))):
        mask = masks.mask_of(scores, "topk", density)
        assert mask.sum() == max(1, round(density * count))
        if not mask.all():
            assert scores.abs()[mask].min() >= scores.abs()[~mask].max()


def test_ties_go_to_the_first_scores():
    assert masks.mask_of(torch.tensor([1.0, -2.0, 2.0, 1.0, 2.0]), "topk", 0.4).tolist() == [
        False,
        True,
        True,
        False,
        False,
    ]


def test_threshold_selects_non_negative_scores():
    assert masks.mask_of(torch.tensor([-0.1, 0.0, 0.1]), "threshold", 0.1).tolist() == [False, True, True]


def test_initial_scores_are_kaiming_uniform():
    reference = torch.empty(50, 3, 4, 4)
    torch.nn.init.kaiming_uniform_(reference, a=math.sqrt(5), generator=torch_generator(3, "scores"))
    assert torch.equal(masks.initial_scores(reference.shape, torch_generator(3, "scores")), reference)


def test_signed_constants_have_the_scale_of_kaiming_normal():
    weight = torch.tensor([[0.3, -0.2, 0.0, -7.0]])
    size = math.sqrt(2) / math.sqrt(4)
    assert masks.signed_constant(weight)[0].tolist() == pytest.approx([size, -size, size, -size])


@pytest.mark.parametrize("rule", ["topk", "threshold"])
def test_straight_through_gradients_reach_all_scores(rule):
    g = torch_generator(4, "scores")
    weight, scores = torch.randn(3, 4, generator=g), torch.randn(3, 4, generator=g)
    x, y = torch.randn(5, 4, generator=g), torch.randn(5, 3, generator=g)
    leaf, own = scores.clone().requires_grad_(), weight.clone().requires_grad_()
    (0.5 * (x @ masks.straight_through(own, leaf, rule, 0.5).T - y).square().sum()).backward()

    w, s = weight.double().numpy(), scores.double().numpy()
    mask = s >= 0 if rule == "threshold" else np.abs(s) >= np.sort(np.abs(s).ravel())[-6]
    error = x.double().numpy() @ (w * mask).T - y.double().numpy()
    slope = (error.T @ x.double().numpy()) * w  # the gradient of the mask itself
    if rule == "topk":  # it ranks |s|
        slope *= np.sign(s)
    np.testing.assert_allclose(leaf.grad.numpy(), slope, rtol=1e-5, atol=1e-5)
    assert own.grad is None


def test_gradients_of_scores_can_be_vectorised():
    g = torch_generator(5, "scores")
    weight, scores = torch.randn(3, 4, generator=g), torch.randn(6, 3, 4, generator=g)

    def loss(s):
        return masks.straight_through(weight, s, "topk", 0.3).square().sum()

    together = torch.func.vmap(torch.func.grad(loss))(scores)
    alone = torch.stack([torch.func.grad(loss)(s) for s in scores])
    assert torch.equal(together, alone)


def test_masked_weights_do_not_affect_outputs():
    mask = torch.tensor([True, False, False])
    out = masks.masked(torch.tensor([2.0, -3.0, float("nan")]), mask)
    assert out.tolist() == [2.0, 0.0, 0.0] and not out.signbit().any()


@pytest.mark.parametrize("shape", [(1,), (8,), (9,), (3, 5), (4, 3, 3, 3)])
def test_packed_bits_equal_numpys_and_unpack(shape):
    mask = torch.rand(shape, generator=torch_generator(6, "mask")) < 0.4
    bits = masks.pack(mask)
    assert bits.dtype == torch.uint8
    assert bits.numpy().tolist() == np.packbits(mask.numpy()).tolist()
    assert torch.equal(masks.unpack(bits, shape), mask)
    assert masks.ones(bits) == mask.sum()


def test_the_free_mask_equals_a_hand_count():
    own = torch.tensor([1, 1, 1, 1, 0, 0], dtype=torch.bool)
    earlier = [torch.tensor([1, 0, 0, 0, 1, 0]).bool(), torch.tensor([1, 1, 0, 0, 0, 0]).bool()]
    packed = [masks.pack(mask) for mask in earlier]
    free = masks.free(masks.pack(own), packed)
    assert masks.unpack(free, (6,)).tolist() == [False, False, True, True, False, False]
    assert masks.unpack(masks.free(masks.pack(own), []), (6,)).tolist() == own.tolist()
    assert masks.free_share([masks.pack(own)], [[bits] for bits in packed]) == 0.5
    assert masks.overlap([masks.pack(own)], [packed[0]]) == 0.25
    assert masks.overlap([packed[0]], [masks.pack(own)]) == 0.5


def test_padding_bits_are_ignored():
    empty = masks.pack(torch.zeros(3).bool())
    assert masks.ones(masks.free(masks.pack(torch.ones(3).bool()), [empty])) == 3


@pytest.mark.parametrize(("density", "tasks"), [(0.1, 20), (0.02, 100), (0.5, 8)])
def test_independent_masks_leave_the_expected_free_share(density, tasks):
    g, size = torch_generator(7, "mask"), 200_000
    drawn = [[masks.pack(torch.rand(size, generator=g) < density)] for _ in range(tasks)]
    expected = (1 - density) ** (tasks - 1)
    deviation = math.sqrt(expected * (1 - expected) / (density * size))
    assert abs(masks.free_share(drawn[-1], drawn[:-1]) - expected) < 4 * deviation
    assert masks.overlap(drawn[-1], drawn[0]) == pytest.approx(density, abs=0.02)


def test_mask_bits_per_weight_equal_the_entropy():
    def bits(density):
        size = 10_000
        return masks.coded_bits([masks.pack(torch.arange(size) < density * size)], [size])

    assert bits(0.1) == pytest.approx(0.469, abs=5e-4)
    assert bits(0.02) == pytest.approx(0.1414, abs=5e-5)
    assert bits(0.5) == pytest.approx(1.0)
    assert bits(0.0) == bits(1.0) == 0.0
    small, large = torch.arange(16) < 8, torch.zeros(48).bool()  # each layer by its own density
    assert masks.coded_bits([masks.pack(small), masks.pack(large)], [16, 48]) == pytest.approx(0.25)
    assert masks.density_of([masks.pack(small), masks.pack(large)], 64) == 0.125
