"""CFD against votes counted by hand, and what a vote costs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from rounds import draw_logits, num_bytes
from small_views import SmallClient

from fedkd.errors import TrainingDiverged
from fedkd.fusion.cfd import CFD
from fedkd.fusion.strategy import Guidance, Knowledge


def fuse(logits: np.ndarray, clients=None) -> Guidance:
    uploads = [CFD().upload(SmallClient(logits=client)) for client in logits]
    extra = {name: [upload[name] for upload in uploads] for name in uploads[0]}
    clients = tuple(range(len(logits))) if clients is None else clients
    return CFD().fuse(Knowledge(clients, None, np.full(len(clients), 10), extra=extra), {})


def test_agrees_with_loops() -> None:
    logits = draw_logits(3, 4, 3)
    expected = np.zeros((4, 3))
    for client in logits.tolist():
        for i, row in enumerate(client):
            expected[i, row.index(max(row))] += 1 / 3
    assert_allclose(fuse(logits).targets, expected, rtol=1e-6)


def test_by_hand() -> None:
    logits = np.array([[[0, 9, 1], [2, 1, 0]], [[0, 1, 0], [0, 0, 1]], [[5, 1, 0], [0, 0, 7]]], np.float32)
    assert_allclose(fuse(logits).targets, [[1 / 3, 2 / 3, 0], [1 / 3, 0, 2 / 3]], rtol=1e-6)
    assert_allclose(fuse(logits).weights, 1 / 3)


@pytest.mark.parametrize(("classes", "size"), [(2, 1), (10, 1), (256, 1), (257, 2), (1000, 2)])
def test_a_vote_is_the_smallest_integer(classes, size) -> None:
    logits = np.zeros((50, classes), np.float32)
    logits[:, -1] = 1
    upload = CFD().upload(SmallClient(logits=logits))
    assert upload["votes"].dtype == (np.uint8 if size == 1 else np.uint16)
    assert num_bytes(upload) == 50 * size + 4
    targets = fuse(logits[None]).targets
    assert_array_equal(targets, logits)  # the last class is not lost to a short integer


def test_votes_far_beyond_a_byte_are_counted() -> None:
    logits = np.zeros((300, 400, 3), np.float32)  # cells and counts above 255
    logits[:200, :, 1] = 1
    assert_allclose(fuse(logits).targets, np.tile([1 / 3, 2 / 3, 0], (400, 1)), rtol=1e-6)


def test_a_model_that_diverged_does_not_vote() -> None:
    logits = draw_logits(1, 4, 3)
    logits[0, 2, 1] = np.nan
    with pytest.raises(TrainingDiverged, match="not numbers"):
        fuse(logits)
