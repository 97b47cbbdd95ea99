from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedkd.data.dataset import Dataset
from fedkd.data.registry import DATASETS, load_dataset
from fedkd.data.request import SourceRequest, data_root_folder
from fedkd.data.sources import image_folder
from fedkd.data.sources.cifar import CIFAR10, ArrayUnpickler
from fedkd.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    """Load a data set whose root is the test's folder: `load("npz", path="a.npz")`."""
    return lambda name, **args: load_dataset(SourceRequest(name, tmp_path, args))


# --- digits ----------------------------------------------------------------------------------------------


def test_digits_are_split_by_class_shares(load):
    digits = load("digits")
    assert digits.train_x.shape == (1438, 1, 8, 8) and digits.test_x.shape == (359, 1, 8, 8)
    assert digits.train_x.min() == 0 and digits.train_x.max() == 1
    share = np.bincount(digits.test_y) / np.bincount(np.concatenate([digits.train_y, digits.test_y]))
    assert np.abs(share - 0.2).max() < 0.01
    assert np.array_equal(digits.test_x, load("digits").test_x)


# --- IDX -------------------------------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_files(folder: Path, zipped: bool = True) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    arrays = {
        "train-images-idx3-ubyte": RNG.integers(0, 256, (30, 4, 5), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.arange(30, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": RNG.integers(0, 256, (10, 4, 5), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8),
    }
    for name, array in arrays.items():
        content = idx_bytes(array)
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return arrays


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_files_are_read_from_either_layout(load, tmp_path: Path, name: str, folder: str, zipped: bool):
    arrays = idx_files(tmp_path / folder, zipped)
    dataset = load(name)
    assert np.array_equal(dataset.train_x[:, 0], arrays["train-images-idx3-ubyte"])
    assert dataset.test_y.tolist() == list(range(10)) and dataset.test_y.dtype == np.int64
    assert dataset.shape == (1, 4, 5) and dataset.classes == 10


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda content: gzip.compress(content[:-1]), "is incomplete"),
        (lambda content: gzip.compress(content)[:-20], "cannot read"),
        (lambda content: content, "cannot read"),
        (lambda content: gzip.compress(b"\0\0\x0b\x01" + content[4:]), "not an IDX file"),
        (lambda content: gzip.compress(content[:6]), "not an IDX file"),
    ],
)
def test_a_broken_idx_file_is_named(load, tmp_path: Path, spoil: Callable[[bytes], bytes], words: str):
    arrays = idx_files(tmp_path / "mnist")
    name = "train-images-idx3-ubyte"
    (tmp_path / "mnist" / f"{name}.gz").write_bytes(spoil(idx_bytes(arrays[name])))
    with pytest.raises(UserError, match=f"{words}.*") as caught:
        load("mnist")
    assert name in str(caught.value)


def test_different_train_and_test_image_sizes_are_refused(load, tmp_path: Path):
    idx_files(tmp_path / "mnist")
    other = np.zeros((10, 6, 5), dtype=np.uint8)
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(other)))
    told = r"must have one size: .*train-images.* has 5×4, .*t10k-images.* has 5×6"
    with pytest.raises(UserError, match=told):
        load("mnist")


def test_oversized_idx_files_are_not_unpacked(load, tmp_path, monkeypatch):
    idx_files(tmp_path / "mnist")
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(300_000)))
    monkeypatch.setattr("fedkd.data.memory_budget.machine_memory", lambda: 200_000)
    with pytest.raises(UserError, match=r"unpacks to more than .* half of this machine's memory"):
        load("mnist")


def test_labels_must_match_their_images(load, tmp_path: Path):
    idx_files(tmp_path / "mnist")
    short = idx_bytes(np.zeros(29, dtype=np.uint8))
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(short))
    with pytest.raises(UserError, match="train-labels"):
        load("mnist")


@pytest.mark.parametrize(("name", "file"), [("mnist", "train-images"), ("cifar10", "cifar-10-binary.tar.gz")])
def test_a_missing_data_set_without_network_names_the_files_to_add(load, tmp_path: Path, name, file):
    with pytest.raises(UserError, match=r"cannot download .*no network") as caught:
        load(name)
    assert file in str(caught.value) and str(tmp_path / name) in str(caught.value)
    assert not list(tmp_path.rglob("*.part"))


def test_idx_files_are_downloaded_once(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import hashlib

    import torchvision.datasets

    idx_files(tmp_path / "mirror")
    resources = [
        (path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in (tmp_path / "mirror").iterdir()
    ]
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://dead/", f"file://{tmp_path}/mirror/"])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    first = load("mnist")
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [])
    assert np.array_equal(first.train_x, load("mnist").train_x)
    assert len(list((tmp_path / "mnist").iterdir())) == 4


# --- CIFAR -----------------------------------------------------------------------------------------------


def cifar_records(count: int, label_bytes: int, classes: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    x = RNG.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    y = np.arange(count) % classes
    head = [np.full(count, 9)] * (label_bytes - 1)
    records = np.concatenate([np.stack([*head, y], axis=1), x.reshape(count, -1)], axis=1)
    return records.astype(np.uint8).tobytes(), x, y


def cifar10_binary(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write the unpacked binary distribution and return its train split."""
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join(f"class{c}" for c in range(10)) + "\n\n")
    parts = []
    for file in (*CIFAR10.train_files, CIFAR10.test_file):
        content, x, y = cifar_records(10, 1, 10)
        (folder / file).write_bytes(content)
        parts.append((x, y))
    return np.concatenate([x for x, _ in parts[:5]]), np.concatenate([y for _, y in parts[:5]])


@pytest.mark.parametrize("folder", ["cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "cifar10"])
def test_cifar10_is_read_from_its_binary_files(load, tmp_path: Path, folder: str):
    x, y = cifar10_binary(tmp_path / folder)
    dataset = load("cifar10")
    assert np.array_equal(dataset.train_x, x) and np.array_equal(dataset.train_y, y)
    assert dataset.class_names == tuple(f"class{c}" for c in range(10)) and len(dataset.test_x) == 10


def test_cifar10_is_read_from_its_archive_without_unpacking(load, tmp_path: Path):
    x, _ = cifar10_binary(tmp_path / "made" / "cifar-10-batches-bin")
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-10-batches-bin", "cifar-10-batches-bin")
    before = sorted(tmp_path.iterdir())
    assert np.array_equal(load("cifar10").train_x, x)
    assert sorted(tmp_path.iterdir()) == before


def test_cifar100_takes_the_fine_label(load, tmp_path: Path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "fine_label_names.txt").write_text("\n".join(f"c{c}" for c in range(100)))
    for file in ("train.bin", "test.bin"):
        (folder / file).write_bytes(cifar_records(100, 2, 100)[0])
    dataset = load("cifar100")
    assert dataset.train_y.tolist() == list(range(100)) and dataset.classes == 100


def test_a_truncated_cifar_file_is_named(load, tmp_path: Path):
    cifar10_binary(tmp_path / "cifar10")
    path = tmp_path / "cifar10" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"data_batch_3\.bin is incomplete"):
        load("cifar10")


def torchvision_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Write torchvision's layout and let torchvision know its checksums; return the train images."""
    import hashlib

    import torchvision.datasets

    folder.mkdir(parents=True)
    images, checksums = [], {}
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        x = RNG.integers(0, 256, (10, 3072), dtype=np.uint8)
        content: dict = {"data": x, "labels": list(range(10))}
        if name == "batches.meta":
            content = {"label_names": [f"class{c}" for c in range(10)]}
        elif name != "test_batch":
            images.append(x)
        (folder / name).write_bytes(pickle.dumps(content, protocol=4))
        checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    source = torchvision.datasets.CIFAR10
    monkeypatch.setattr(
        source, "train_list", [[f"data_batch_{n}", checksums[f"data_batch_{n}"]] for n in range(1, 6)]
    )
    monkeypatch.setattr(source, "test_list", [["test_batch", checksums["test_batch"]]])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": checksums["batches.meta"]})
    return np.concatenate(images).reshape(-1, 3, 32, 32)


def test_torchvision_batches_are_read_if_checksums_match(load, tmp_path: Path, monkeypatch):
    x = torchvision_batches(tmp_path / "cifar-10-batches-py", monkeypatch)
    dataset = load("cifar10")
    assert np.array_equal(dataset.train_x, x) and dataset.test_y.tolist() == list(range(10))


def test_a_pickle_with_another_checksum_is_never_opened(load, tmp_path: Path, monkeypatch):
    torchvision_batches(tmp_path / "cifar-10-batches-py", monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(UserError, match="data_batch_2 is missing, or differs from torchvision's file"):
        load("cifar10")


def test_the_unpickler_builds_nothing_but_arrays():
    array = np.arange(6).reshape(2, 3)
    assert np.array_equal(ArrayUnpickler(io.BytesIO(pickle.dumps(array, protocol=4))).load(), array)
    with pytest.raises(UserError, match="refused to load"):
        ArrayUnpickler(io.BytesIO(pickle.dumps(os.system))).load()


# --- npz -------------------------------------------------------------------------------------------------


def test_an_npz_file_may_have_a_test_split(load, tmp_path: Path):
    np.savez(
        tmp_path / "a.npz",
        train_x=RNG.random((6, 3)),
        train_y=np.array([0, 1, 2, 0, 1, 2]),
        test_x=RNG.random((3, 3)),
        test_y=np.array([2, 1, 0], dtype=np.uint8),
        class_names=np.array(["a", "b", "c"]),
    )
    dataset = load("npz", path="a.npz")
    assert dataset.train_x.dtype == np.float32 and dataset.shape == (3,)
    assert dataset.class_names == ("a", "b", "c") and dataset.test_y.tolist() == [2, 1, 0]


def test_npz_files_of_wrong_type_or_excessive_size_are_refused(load, tmp_path: Path, monkeypatch):
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"cannot read .*a\.npz as \.npz"):
        load("npz", path="a.npz")
    header = np.lib.format.magic(1, 0) + b"\x76\x00"
    header += b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", header)
    with pytest.raises(UserError, match="declares arrays too large for memory"):
        load("npz", path="b.npz")
    np.savez_compressed(tmp_path / "c.npz", x=np.zeros((1000, 100)), y=np.zeros(1000, int))
    assert (tmp_path / "c.npz").stat().st_size < 10_000
    monkeypatch.setattr("fedkd.data.memory_budget.memory_budget", lambda: 100_000)
    with pytest.raises(UserError, match=r"unpacks to .* half of this machine's memory"):
        load("npz", path="c.npz")


def test_huge_label_values_are_refused(load, tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 4), np.float32), y=np.array([0, 2_000_000_000] * 10))
    with pytest.raises(UserError, match="the largest is 2000000000, and there are 20 train samples"):
        load("npz", path="a.npz")


@pytest.mark.parametrize(("value", "words"), [(1e300, "finite in float32"), (1e30, r"within ±1e\+15")])
def test_samples_whose_squares_overflow_float32_are_refused(load, tmp_path, value, words):
    np.savez(tmp_path / "a.npz", x=np.full((20, 4), value), y=np.arange(20) % 2)
    with pytest.raises(UserError, match=words):
        load("npz", path="a.npz")


def test_npz_without_a_test_split_is_split_by_class_and_seed(load, tmp_path: Path):
    x = RNG.integers(0, 256, (100, 5, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(100) % 4)
    dataset = load("npz", path="a.npz")
    assert dataset.shape == (3, 5, 6)  # channels last is turned round
    assert np.bincount(dataset.test_y).tolist() == [5, 5, 5, 5]
    assert np.array_equal(dataset.test_x, load("npz", path="a.npz").test_x)
    assert not np.array_equal(dataset.test_x, load("npz", path="a.npz", split_seed=1).test_x)
    assert len(load("npz", path="a.npz", test_share=0.4).test_x) == 40


X, Y = np.zeros((4, 2)), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X}, "must hold train_x, train_y, test_x, test_y or x, y; it holds x"),
        ({"x": X, "y": Y[:3]}, "a label for each of 4 samples, got 3"),
        ({"x": X, "y": Y + 1}, "none has label 0"),
        ({"x": X, "y": Y - 1}, "≥ 0, got -1"),
        ({"x": X, "y": Y * 0.5}, "integer labels"),
        ({"x": X * np.nan, "y": Y}, "finite"),
        ({"x": X.astype(str), "y": Y}, "must hold numbers"),
        ({"x": X[:, 0], "y": Y}, r"got shape \(4,\)"),
        ({"x": X, "y": Y, "class_names": np.array(["a"])}, "label 1 has no name"),
        ({"train_x": X, "train_y": Y, "test_x": X[:, :1], "test_y": Y}, "of one shape"),
        ({"x": np.array([[object()]]), "y": Y[:1]}, "without pickled objects"),
    ],
)
def test_invalid_npz_arrays_are_refused(load, tmp_path: Path, arrays: dict, words: str):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=words) as caught:
        load("npz", path="a.npz")
    assert caught.value.key == "data.args.path"


def test_invalid_arguments_are_refused(load, tmp_path: Path):
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match="did you mean 'path'") as caught:
        load("npz", pth="a.npz")
    assert caught.value.key == "data.args.pth"
    with pytest.raises(UserError, match="must be of type str, got 3"):
        load("npz", path=3)
    with pytest.raises(UserError, match="needs the path"):
        load("npz")
    with pytest.raises(UserError, match=r"no file or folder 'b\.npz'"):
        load("npz", path="b.npz")
    with pytest.raises(UserError, match="cannot read"):
        load("npz", path="a.npz")


# --- image folder ----------------------------------------------------------------------------------------


def png(value: int, size: tuple[int, int] = (6, 5)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


TREE = {
    "train/dog/b.png": 3,
    "train/dog/a.png": 2,
    "train/cat/z.png": 1,
    "test/cat/q.png": 4,
    "test/dog/q.png": 5,
}


def image_tree(folder: Path, tree: dict[str, int]) -> Path:
    for name, value in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(value))
    return folder


def image_tar(path: Path, tree: dict[str, int], mode: str = "w:gz", top: str = "") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, value in tree.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(png(value))
            archive.addfile(member, io.BytesIO(png(value)))
    return path


def red(x: np.ndarray) -> list[int]:
    return x[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("kind", ["folder", "w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("top", ["", "./", "animals/"])
def test_images_are_read_in_sorted_order(load, tmp_path: Path, kind: str, top: str):
    if kind == "folder":
        image_tree(tmp_path / "pets" / top, TREE)
    else:
        image_tar(tmp_path / "pets", TREE, kind, top)
    dataset = load("image-folder", path="pets")
    assert dataset.class_names == ("cat", "dog") and dataset.shape == (3, 5, 6)
    assert red(dataset.train_x) == [1, 2, 3] and dataset.train_y.tolist() == [0, 1, 1]
    assert red(dataset.test_x) == [4, 5] and dataset.test_y.tolist() == [0, 1]


def test_images_without_a_test_folder_are_split_by_class(load, tmp_path: Path):
    image_tree(tmp_path / "pets", {f"{label}/{n}.png": n for label in ("cat", "dog") for n in range(10)})
    dataset = load("image-folder", path="pets", test_share=0.3)
    assert np.bincount(dataset.test_y).tolist() == [3, 3] and len(dataset.train_x) == 14


def test_images_are_resized_and_made_grey(load, tmp_path: Path):
    image_tree(tmp_path / "pets", TREE)
    dataset = load("image-folder", path="pets", size=8, grayscale=True)
    assert dataset.shape == (1, 8, 8) and dataset.train_x.dtype == np.uint8


def test_decoded_images_are_cached_until_a_file_changes(load, tmp_path: Path, cache: Path, monkeypatch):
    image_tree(tmp_path / "pets", TREE)
    first = load("image-folder", path="pets")
    decode = image_folder._decode
    monkeypatch.setattr(image_folder, "_decode", None)  # any decoding would fail
    assert np.array_equal(load("image-folder", path="pets").train_x, first.train_x)
    monkeypatch.setattr(image_folder, "_decode", decode)
    (tmp_path / "pets/train/cat/z.png").write_bytes(png(200))
    assert red(load("image-folder", path="pets").train_x) == [200, 2, 3]
    for file in (cache / "image-folder").iterdir():
        file.write_bytes(b"broken")
    assert red(load("image-folder", path="pets").train_x) == [200, 2, 3]


def test_a_malicious_archive_writes_nothing(load, tmp_path: Path):
    path = image_tar(tmp_path / "pets.tar", TREE | {"../../evil/train/cat/e.png": 9}, "w")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("train/cat/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    before = sorted(tmp_path.iterdir())
    dataset = load("image-folder", path="pets.tar")
    assert len(dataset.train_x) == 4  # the bytes are read in memory, the link is not followed
    assert [p for p in sorted(tmp_path.iterdir()) if p.name != "cache"] == before
    assert not (tmp_path.parent.parent / "evil").exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"notes.txt": b""}, "holds no images"),
        ({"train/cat/a.png": b"no image"}, "cannot decode train/cat/a.png"),
        ({"a.png": png(1)}, "must lie in the folder of its class"),
        ({"train/cat/sub/a.png": png(1)}, "directly in train/<class>/"),
        ({"train/cat/a.png": png(1), "test/dog/a.png": png(1)}, "class dog has test images but no train"),
        ({"train/cat/a.png": png(1), "train/cat/b.png": png(1, (3, 3))}, "b.png is 3×3, .* is 6×5"),
    ],
)
def test_invalid_image_folders_are_refused(load, tmp_path: Path, files: dict[str, bytes], words: str):
    for name, content in files.items():
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load("image-folder", path="pets")
    assert caught.value.key == "data.args.path"


@pytest.mark.parametrize("cut", [0, 100])  # between two members, inside one
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_truncated_archive_is_refused(load, tmp_path: Path, mode: str, cut: int):
    tree = {f"train/cat/{n}.png": n for n in range(200)}
    path = image_tar(tmp_path / "pets", tree, mode)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - cut])
    with pytest.raises(UserError, match="as a complete tar archive"):
        load("image-folder", path="pets")


# --- plug-ins and the registry ---------------------------------------------------------------------------

PLUGIN = """
import numpy as np
from fedkd.data.dataset import Dataset
X, Y = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])
def as_tuple(samples=4): return X[:samples], Y[:samples], X, Y
def as_dict(): return dict(train_x=X, train_y=Y, test_x=X, test_y=Y, class_names=["no", "yes"])
def as_dataset(): return Dataset("own", ("no", "yes"), X, Y, X, Y)
def wrong(): return 3
def partial(): return dict(train_x=X)
def unknown(): return dict(train_x=X, train_y=Y, test_x=X, test_y=Y, train_z=Y)
def broken(): raise ValueError("no such thing")
"""


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., Dataset]:
    (tmp_path / "own_data.py").write_text(PLUGIN)
    return lambda name, **args: load_dataset(
        SourceRequest(f"own_data:{name}", tmp_path / "root", args, (tmp_path,))
    )


@pytest.mark.parametrize("form", ["as_tuple", "as_dict", "as_dataset"])
def test_a_data_function_may_return_any_of_three_forms(call, form: str):
    dataset = call(form)
    assert dataset.train_x.shape == (4, 2) and dataset.train_y.dtype == np.int64
    assert dataset.class_names == (("0", "1") if form == "as_tuple" else ("no", "yes"))


def test_arguments_reach_the_data_function(call):
    assert len(call("as_tuple", samples=2).train_x) == 2


@pytest.mark.parametrize(
    ("form", "args", "words"),
    [
        ("wrong", {}, "must return a Dataset, a tuple"),
        ("partial", {}, "returned no train_y, test_x, test_y"),
        ("unknown", {}, "unknown entry 'train_z'"),
        ("broken", {}, "raised ValueError: no such thing"),
        ("as_tuple", {"sample": 1}, "raised TypeError"),
        ("absent", {}, "has no 'absent'"),
    ],
)
def test_errors_of_a_data_function_are_user_errors(call, form: str, args: dict, words: str):
    with pytest.raises(UserError, match=words) as caught:
        call(form, **args)
    assert caught.value.key == "data.dataset"


def test_an_unknown_data_set_suggests_the_nearest(load):
    with pytest.raises(UserError, match="did you mean 'fashion-mnist'") as caught:
        load("fashion-mnits")
    assert caught.value.key == "data.dataset"


def test_every_registered_data_set_can_be_imported():
    assert all(callable(DATASETS.load(name)) for name in DATASETS.names())


# --- real files ------------------------------------------------------------------------------------------


def test_mnist_has_its_known_content(data_root: Path):
    dataset = load_dataset(SourceRequest("mnist", data_root))
    assert dataset.train_x.shape == (60_000, 1, 28, 28) and len(dataset.test_x) == 10_000
    assert dataset.train_y[:5].tolist() == [5, 0, 4, 1, 9]
    assert dataset.train_x.mean() / 255 == pytest.approx(0.1307, abs=5e-5)


def test_fashion_mnist_has_its_known_content(data_root: Path):
    dataset = load_dataset(SourceRequest("fashion-mnist", data_root))
    assert np.bincount(dataset.train_y).tolist() == [6000] * 10
    assert dataset.train_x.mean() / 255 == pytest.approx(0.2860, abs=5e-5)


@pytest.mark.slow
def test_sixty_thousand_jpegs_are_decoded_once(data_root: Path):
    request = SourceRequest("image-folder", data_root, {"path": "cifar10-jpeg/cifar10-jpeg-q75.tar.xz"})
    dataset = load_dataset(request)
    assert dataset.train_x.shape == (50_000, 3, 32, 32) and dataset.test_x.shape == (10_000, 3, 32, 32)
    assert np.bincount(dataset.train_y).tolist() == [5000] * 10
    assert np.array_equal(load_dataset(request).train_y, dataset.train_y), "from the cache"


# --- the data root ---------------------------------------------------------------------------------------


def test_the_data_root_is_of_scenario_then_environment_then_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert data_root_folder(None) == cache
    monkeypatch.setenv("FEDKD_DATA", str(tmp_path / "environment"))
    assert data_root_folder(None) == tmp_path / "environment"
    assert data_root_folder(str(tmp_path / "scenario")) == tmp_path / "scenario"


def test_the_cache_is_searched_after_the_root(cache: Path, tmp_path: Path):
    idx_files(cache / "mnist")
    assert len(load_dataset(SourceRequest("mnist", tmp_path / "empty")).train_x) == 30


def test_relative_paths_start_at_root_scenario_or_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root, beside, here = (tmp_path / name for name in ("root", "beside", "here"))
    for folder in (root, beside, here):
        folder.mkdir()
        (folder / "a").touch()
    monkeypatch.chdir(here)
    request = SourceRequest("npz", root, {}, (beside,))
    assert request.path("a") == root / "a"
    (root / "a").unlink()
    assert request.path("a") == beside / "a"
    (beside / "a").unlink()
    assert request.path("a").resolve() == here / "a"


# --- Bombs -----------------------------------------------------------------------------------------------


def grey_png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.filterwarnings("error")  # Pillow warns of such an image
def test_an_oversized_image_is_not_decoded(load, tmp_path: Path):
    content = grey_png(5, 5)
    header = b"IHDR" + struct.pack(">II", 10_000, 10_000) + content[24:29]
    content = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    for split in ("train", "test"):
        (tmp_path / "a" / split / "x").mkdir(parents=True)
        (tmp_path / "a" / split / "x" / "0.png").write_bytes(content)
    with pytest.raises(UserError, match=r"0.png has 10,000×10,000 pixels; at most 50,000,000"):
        load("image-folder", path="a")


@pytest.mark.parametrize(
    ("size", "words"), [(None, "decoded, take more than"), (400, "an image of this size")]
)
def test_images_beyond_memory_are_not_all_decoded(load, tmp_path, monkeypatch, size, words):
    for number in range(20):
        path = tmp_path / "a" / "train" / "x" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(grey_png(30, 30))
    monkeypatch.setattr("fedkd.data.memory_budget.machine_memory", lambda: 100_000)
    with pytest.raises(UserError, match=words):
        load("image-folder", path="a", **({} if size is None else {"size": size}))


def test_an_oversized_tar_member_is_not_read(load, tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("train/x/0.png")
        member.size = 6 << 40
        archive.addfile(member)  # the header alone: what it claims does not follow
    with pytest.raises(UserError, match=r"takes 6,597.1 GB; half of this machine's memory"):
        load("image-folder", path="a.tar")
