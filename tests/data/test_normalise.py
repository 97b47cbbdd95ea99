from __future__ import annotations

import numpy as np
import pytest

from fedkd.data.normalise import measure


@pytest.mark.parametrize("shape", [(5000, 3, 4, 5), (5000, 7)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_channels_end_with_zero_mean_and_unit_variance(shape: tuple[int, ...], dtype: type):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200, shape).astype(dtype)
    x[:, 0] //= 3  # channels differ
    axes = (0, 2, 3) if len(shape) == 4 else (0,)
    reference = x.astype(np.float64) / (255 if dtype == np.uint8 else 1)
    statistics = measure(x)
    assert np.allclose(statistics.mean.ravel(), reference.mean(axis=axes), rtol=1e-10)
    assert np.allclose(statistics.std.ravel(), reference.std(axis=axes), rtol=1e-10)
    out = statistics.normalise(x)
    expected = (reference - reference.mean(axes, keepdims=True)) / reference.std(axes, keepdims=True)
    assert out.dtype == np.float32 and out.flags.c_contiguous
    assert np.allclose(out, expected, atol=1e-5)


def test_a_constant_feature_is_centred_and_left_unscaled():
    x = np.array([[3.0, 1.0], [3.0, 3.0]], dtype=np.float32)
    assert measure(x).normalise(x).tolist() == [[0.0, -1.0], [0.0, 1.0]]


def test_a_large_offset_does_not_cancel_the_variance():
    x = (1e4 + np.random.default_rng(0).standard_normal((1000, 2))).astype(np.float32)
    assert np.allclose(measure(x).std, x.astype(np.float64).std(axis=0), rtol=1e-6)
