from __future__ import annotations

import numpy as np
import pytest

from fedkd.data.federated import load_federated_data
from fedkd.data.transfer import bilinear_matrix, convert_images, draw_holdout
from fedkd.errors import UserError


def test_a_holdout_is_disjoint_from_every_client(scenario):
    data = load_federated_data(scenario(transfer={"size": 400}, partition={"scheme": "iid"}))
    assert len(data.transfer_x) == 400
    assert len(data.source_index) + 400 == 1438
    private = {sample.tobytes() for sample in data.x}
    shared = sum(sample.tobytes() in private for sample in data.transfer_x)
    assert shared == 0  # the digits hold no two equal images (checked by the next test)


def test_digits_have_no_duplicate_images(scenario):
    data = load_federated_data(scenario(transfer={"source": "noise"}, partition={"scheme": "iid"}))
    assert len({sample.tobytes() for sample in data.x}) == len(data.x) == 1438


def test_a_holdout_is_uniform_and_follows_the_seed():
    available = np.arange(100, 1100)
    drawn = draw_holdout(available, available, 500, seed=1)
    assert len(np.unique(drawn)) == 500 and drawn.min() >= 100
    assert abs(drawn.mean() - available.mean()) < 60
    assert not np.array_equal(drawn, draw_holdout(available, available, 500, seed=2))


def test_a_skewed_holdout_has_its_own_mix_without_duplicates():
    labels = np.arange(2000) % 4
    available = np.arange(100, 2000)
    near, far = (draw_holdout(labels, available, 400, a, seed=1) for a in (1e6, 0.1))
    for drawn in (near, far):
        assert len(np.unique(drawn)) == 400 and drawn.min() >= 100
    assert np.ptp(np.bincount(labels[near], minlength=4)) <= 4
    assert np.bincount(labels[far], minlength=4).min() < 20
    assert not np.array_equal(far, draw_holdout(labels, available, 400, 0.1, seed=2))
    # What one class has too few of, the others make up for.
    most = draw_holdout(labels, available, 1899, 0.1, seed=1)
    assert len(np.unique(most)) == 1899
    with pytest.raises(UserError, match="must be < 1900"):
        draw_holdout(labels, available, 1900, 0.1, seed=1)


def test_a_skewed_holdout_is_disjoint_from_every_client(scenario):
    skewed = scenario(transfer={"size": 200, "alpha": 0.2}, partition={"scheme": "iid"})
    data = load_federated_data(skewed)
    assert data.transfer_y is not None and np.bincount(data.transfer_y, minlength=10).min() == 0
    private = {sample.tobytes() for sample in data.x}
    assert not any(sample.tobytes() in private for sample in data.transfer_x)


def test_noise_is_standard_normal(scenario):
    data = load_federated_data(scenario(transfer={"source": "noise", "size": 2000}))
    assert data.transfer_x.shape == (2000, 1, 8, 8) and data.transfer_x.dtype == np.float32
    assert abs(data.transfer_x.mean()) < 0.02 and abs(data.transfer_x.std() - 1) < 0.02


@pytest.mark.parametrize(("source", "target"), [((28, 28), (8, 8)), ((8, 8), (28, 28)), ((5, 9), (7, 4))])
def test_resizing_equals_torchs(source: tuple[int, int], target: tuple[int, int]):
    import torch

    x = np.random.default_rng(0).random((3, 2, *source), dtype=np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x), size=target, mode="bilinear", align_corners=False, antialias=True
    )
    assert np.allclose(convert_images(x, (2, *target)), expected.numpy(), atol=1e-5)


def test_resizing_keeps_a_constant_image():
    assert np.allclose(bilinear_matrix(28, 8).sum(axis=1), 1.0)


def test_colour_becomes_grey_by_luminance_and_grey_is_replicated():
    pixel = np.array([[[[255]], [[0]], [[51]]]], dtype=np.uint8)
    assert convert_images(pixel, (1, 1, 1)).item() == pytest.approx(0.299 + 0.114 * 0.2, abs=1e-6)
    grey = np.full((1, 1, 2, 2), 51, dtype=np.uint8)
    assert np.allclose(convert_images(grey, (3, 2, 2)), 0.2)


def test_a_foreign_transfer_set_gets_the_private_shape_and_scale(scenario, data_root):
    data = load_federated_data(
        scenario(
            dataset="fashion-mnist",
            root=str(data_root),
            partition={"samples_per_client": 50},
            transfer={"source": "digits", "size": 200},
            test_size=100,
        )
    )
    assert data.transfer_x.shape == (200, 1, 28, 28)
    # Black, 0 of 0..1, is the same value for both: −mean / std of the private data.
    assert data.transfer_x.min() == pytest.approx(data.x.min(), abs=1e-5)


def test_arrays_of_a_file_can_be_the_transfer_set(scenario, tmp_path):
    from fedkd.data.normalise import measure
    from fedkd.data.request import SourceRequest, data_root_folder
    from fedkd.data.sources.digits import load

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    y = np.arange(40) % 10
    np.savez(tmp_path / "more.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    made = scenario(
        plugin_path=(tmp_path,), transfer={"source": "npz", "args": {"path": "more.npz"}, "size": 40}
    )
    data = load_federated_data(made)
    private = measure(load(SourceRequest("digits", data_root_folder(None))).train_x)
    assert np.allclose(data.transfer_x, private.normalise(x)) and data.transfer_y is None


def test_private_and_transfer_set_need_different_files(scenario, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        x = np.random.default_rng(seed).random((300, 4))
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.arange(300) % 3)

    def files(private: str, transfer: str):
        return scenario(
            plugin_path=(tmp_path,),
            dataset="npz",
            args={"path": private},
            clients=3,
            transfer={"source": "npz", "args": {"path": transfer}, "size": 100},
        )

    assert load_federated_data(files("a.npz", "b.npz")).transfer_x.shape == (100, 4)
    with pytest.raises(UserError, match="would leak"):
        load_federated_data(files("a.npz", "a.npz"))


@pytest.mark.parametrize(
    ("transfer", "key", "words"),
    [
        ({"size": 1438}, "size", "must be < 1438"),
        ({"source": "digits"}, "source", "holdout"),
        ({"source": "npz"}, "args.path", "needs the path of its file"),
        ({"source": "npz", "args": {"path": "no.npz"}}, "args.path", "no file or folder 'no.npz'"),
        ({"source": "image-folder", "args": {"pth": "x"}}, "args.pth", "did you mean 'path'"),
        ({"source": "mnits"}, "source", "allowed: holdout, noise, digits, mnist"),
    ],
)
def test_errors_name_the_key_of_the_transfer_set(scenario, transfer: dict, key: str, words: str):
    with pytest.raises(UserError, match=words) as caught:
        load_federated_data(scenario(transfer=transfer))
    assert caught.value.key == f"data.transfer.{key}"
