from __future__ import annotations

import numpy as np
import pytest

from fedkd.data.federated import FederatedData, load_federated_data
from fedkd.data.heterogeneity import (
    Skew,
    add_noise,
    draw_skews,
    replace_labels,
    rotate,
    skew_images,
)
from fedkd.errors import UserError
from fedkd.scenario.schema import Heterogeneity

DIGITS = {"clients": 6, "transfer": {"size": 300}}


def load(scenario, data: dict | None = None, seed: int = 1, **bounds: float) -> FederatedData:
    made = scenario(seed=seed, **{**DIGITS, **(data or {})})
    return load_federated_data(made.model_copy(update={"heterogeneity": Heterogeneity(**bounds)}))


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
@pytest.mark.parametrize("side", [7, 8])
def test_a_quarter_turn_equals_rot90(quarters: int, side: int):
    images = random_images(3, 2, side, side)
    expected = np.rot90(images, quarters, axes=(2, 3))
    assert np.allclose(rotate(images, 90.0 * quarters), expected, atol=1e-5)


def test_a_rotation_by_zero_changes_nothing():
    images = random_images(2, 3, 5, 9)
    assert np.array_equal(rotate(images, 0.0), images)


@pytest.mark.parametrize("degrees", [17.0, -63.5])
def test_a_rotation_equals_pixel_by_pixel_interpolation(degrees: float):
    images = random_images(1, 1, 6, 9)
    turned = rotate(images, degrees)[0, 0]
    angle, (height, width) = np.deg2rad(degrees), (6, 9)
    for r in range(height):
        for c in range(width):
            # In the plane with y upwards, the pixel came from where a clockwise turn takes it.
            x, y = c - (width - 1) / 2, (height - 1) / 2 - r
            source_c = x * np.cos(angle) + y * np.sin(angle) + (width - 1) / 2
            source_r = (height - 1) / 2 - (y * np.cos(angle) - x * np.sin(angle))
            expected = sum(
                images[0, 0, i, j] * max(0, 1 - abs(source_r - i)) * max(0, 1 - abs(source_c - j))
                for i in range(height)
                for j in range(width)
            )
            assert turned[r, c] == pytest.approx(expected, abs=1e-5)


def test_a_rotation_fills_with_black_before_normalisation(scenario):
    white = np.full((1, 1, 8, 8), 255, dtype=np.uint8)
    turned = skew_images(white, Skew(angle=45.0))
    assert turned[0, 0, 0, 0] == 0.0 and turned[0, 0, 4, 4] == pytest.approx(1.0)
    plain, skewed = load(scenario), load(scenario, rotation=45.0)
    assert skewed.x.min() == pytest.approx(plain.x.min(), abs=1e-5)  # black is the darkest there is


def test_each_channel_has_its_own_factor():
    images = random_images(4, 3, 2, 2)
    scaled = skew_images(images, Skew(colour=(0.5, 1.0, 1.5)))
    assert np.allclose(scaled[:, 0], images[:, 0] / 2) and np.allclose(scaled[:, 2], images[:, 2] * 1.5)
    assert np.array_equal(scaled[:, 1], images[:, 1]) and scaled.dtype == np.float32


def test_noise_has_the_given_standard_deviation():
    noise = add_noise(np.ones((200, 1, 10, 10), np.float32), 0.3, np.random.default_rng(0)) - 1
    assert noise.std() == pytest.approx(0.3, rel=0.02) and abs(noise.mean()) < 0.01
    assert noise.dtype == np.float32


@pytest.mark.parametrize(
    ("share", "replaced"), [(0.0, 0), (0.0009, 0), (0.25, 249), (0.4, 398), (0.999, 996)]
)
def test_the_number_of_wrong_labels_is_rounded_down(share: float, replaced: int):
    labels = np.arange(997) % 5
    noisy = replace_labels(labels, 5, share, np.random.default_rng(0))
    assert (noisy != labels).sum() == replaced
    assert noisy.min() >= 0 and noisy.max() <= 4


def test_wrong_labels_are_uniform_over_the_other_classes():
    labels = np.full(8000, 2)
    counts = np.bincount(replace_labels(labels, 5, 0.5, np.random.default_rng(0)), minlength=5)
    assert counts[2] == 4000
    assert np.abs(np.delete(counts, 2) - 1000).max() < 5 * np.sqrt(1000)


def test_draws_lie_within_their_bounds_and_reach_them():
    bounds = Heterogeneity(rotation=30.0, noise=0.5, colour=0.2, label_noise=0.4)
    skews = draw_skews(bounds, 400, (3, 8, 8), 10, seed=1)
    angles = np.array([skew.angle for skew in skews])
    assert np.abs(angles).max() <= 30 and angles.min() < -28 and angles.max() > 28
    for values, top in (([s.noise for s in skews], 0.5), ([s.label_noise for s in skews], 0.4)):
        assert 0 <= min(values) < 0.05 * top and 0.95 * top < max(values) <= top
    colours = np.array([skew.colour for skew in skews])
    assert colours.shape == (400, 3) and colours.min() >= 0.8 and colours.max() <= 1.2
    assert np.abs(np.corrcoef(colours.T)[0, 1:]).max() < 0.2


def test_one_kind_of_skew_leaves_the_draws_of_another_unchanged():
    alone = draw_skews(Heterogeneity(rotation=30.0), 5, (1, 8, 8), 10, seed=1)
    together = draw_skews(Heterogeneity(rotation=30.0, noise=1.0, colour=0.5), 5, (1, 8, 8), 10, seed=1)
    assert [skew.angle for skew in alone] == [skew.angle for skew in together]
    assert alone[0] == Skew(angle=alone[0].angle)


def test_without_heterogeneity_nothing_changes(scenario):
    plain = load_federated_data(scenario(**DIGITS))
    assert plain.skew == () and draw_skews(Heterogeneity(), 3, (4,), 2, seed=1) == ()
    skewed = load(scenario, rotation=20.0, noise=0.5, colour=0.3, label_noise=0.3)
    for name in ("source_index", "transfer_x", "transfer_y", "test_x", "test_y"):
        assert np.array_equal(getattr(plain, name), getattr(skewed, name)), name
    assert not np.array_equal(plain.x, skewed.x) and len(skewed.skew) == 6


def test_local_test_samples_are_skewed_and_keep_true_labels(scenario):
    plain = load(scenario)
    skewed = load(scenario, noise=1.0, label_noise=0.5)
    for n in range(6):
        before, after = plain.client(n), skewed.client(n)
        for split in ("train_x", "test_x"):
            difference = getattr(after, split) - getattr(before, split)
            assert difference.std() == pytest.approx(skewed.skew[n].noise, rel=0.1)
        assert np.array_equal(before.test_y, after.test_y)
        wrong = (before.train_y != after.train_y).sum()
        assert wrong == int(skewed.skew[n].label_noise * len(after.train_y))
    assert sum(skewed.skew[n].label_noise > 0.05 for n in range(6)) >= 4


def test_the_samples_of_a_client_are_rotated_by_its_angle(scenario):
    from fedkd.data.normalise import measure
    from fedkd.data.request import SourceRequest, data_root_folder
    from fedkd.data.sources.digits import load as digits

    stored = digits(SourceRequest("digits", data_root_folder(None))).train_x
    skewed = load(scenario, rotation=40.0, colour=0.5)
    start, stop = skewed.train_bounds[2]
    images = stored[skewed.source_index[start:stop]].astype(np.float32)
    images = images / 255 if stored.dtype == np.uint8 else images
    statistics = measure(stored)
    expected = rotate(images, skewed.skew[2].angle) * np.float32(skewed.skew[2].colour[0])
    assert np.allclose(skewed.x[start:stop], (expected - statistics.mean) / statistics.std, atol=1e-5)


def test_all_kinds_of_skew_combine_and_the_seed_fixes_them(scenario):
    data = {"partition": {"scheme": "quantity", "alpha": 0.5}}
    bounds = {"rotation": 20.0, "noise": 0.5, "colour": 0.3, "label_noise": 0.3}
    first, again, other = (load(scenario, data, seed=seed, **bounds) for seed in (1, 1, 2))
    assert first.x.tobytes() == again.x.tobytes() and first.y.tobytes() == again.y.tobytes()
    assert first.skew == again.skew != other.skew
    sizes = [stop - start for start, stop in first.train_bounds]
    assert max(sizes) > 2 * min(sizes)
    assert first.x.dtype == np.float32 and first.x.flags.c_contiguous and np.isfinite(first.x).all()


@pytest.mark.parametrize("kind", ["rotation", "colour"])
def test_vectors_can_be_noisy_but_not_rotated_or_tinted(scenario, tmp_path, kind: str):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "v.npz", x=rng.random((900, 5)), y=np.arange(900) % 3)
    data = {"dataset": "npz", "args": {"path": str(tmp_path / "v.npz")}}
    with pytest.raises(UserError, match=r"must be 0, because the samples are vectors \[5\]") as caught:
        load(scenario, data, **{kind: 0.5})
    assert caught.value.key == f"heterogeneity.{kind}"
    assert load(scenario, data, noise=0.5, label_noise=0.2).x.shape[1:] == (5,)


def test_transfer_labels_come_from_the_holdout(scenario):
    data = load(scenario)
    everything = load(scenario, {"transfer": {"source": "noise"}})
    label_of = {x.tobytes(): y for x, y in zip(everything.x, everything.y, strict=True)}
    assert [label_of[x.tobytes()] for x in data.transfer_x] == data.transfer_y.tolist()
    assert everything.transfer_y is None
    assert not hasattr(data.client(0), "transfer_y")


def test_check_describes_the_drawn_skew(tmp_path, capsys):
    from fedkd.cli.main import main

    path = tmp_path / "scenario.toml"
    path.write_text("data.transfer.size = 300\n[heterogeneity]\nrotation = 30\nlabel_noise = 0.4")
    assert main(["check", str(path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "clients differ by" in line]
    drawn = draw_skews(Heterogeneity(rotation=30, label_noise=0.4), 10, (1, 8, 8), 10, seed=0)
    angles, shares = [skew.angle for skew in drawn], [skew.label_noise for skew in drawn]
    assert f"rotation {min(angles):+.0f}° to {max(angles):+.0f}°" in line
    assert line.endswith(f"wrong training labels {min(shares):.0%} to {max(shares):.0%}")
