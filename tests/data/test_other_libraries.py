"""Data sets of Hugging Face and PyTorch, and partitioners of flwr-datasets."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

import fedkd
from fedkd.data.partitions.flower_datasets import partitioner_scheme
from fedkd.data.partitions.plugin import plugged_partition
from fedkd.data.registry import load_dataset
from fedkd.data.request import SourceRequest
from fedkd.errors import UserError
from fedkd.scenario.schema import Partition

pytestmark = pytest.mark.usefixtures("no_report")

SIZE = 40


@pytest.fixture
def hf():
    return pytest.importorskip("datasets")


def load(folder, name="hf", regression=False, **args):
    return load_dataset(SourceRequest(name, folder, args, (folder,), regression=regression))


def rows(hf, count=SIZE):
    values = {
        "age": [float(n) for n in range(count)],
        "site": ["ab"[n % 2] for n in range(count)],
        "grade": [n % 3 for n in range(count)],
    }
    kinds = {
        "age": hf.Value("float32"),
        "site": hf.Value("string"),
        "grade": hf.ClassLabel(names=["x", "y", "z"]),
    }
    return hf.Dataset.from_dict(values, features=hf.Features(kinds))


def test_a_folder_of_hugging_face_is_the_same_as_its_table(hf, tmp_path):
    whole = rows(hf)
    whole.save_to_disk(tmp_path / "whole")
    found = load(tmp_path, path="whole", columns={"client": "site"})
    frame = whole.to_pandas().assign(grade=lambda t: t["grade"].map(dict(enumerate("xyz"))))
    frame.to_csv(tmp_path / "rows.csv", index=False)
    same = load(tmp_path, "table", path="rows.csv", columns={"label": "grade", "client": "site"})
    for field in ("train_x", "train_y", "test_x", "test_y", "owners"):
        np.testing.assert_array_equal(getattr(found, field), getattr(same, field))
    assert found.class_names == same.class_names == ("x", "y", "z")


def test_splits_of_hugging_face_are_train_and_test(hf, tmp_path):
    whole = rows(hf)
    hf.DatasetDict(
        {"train": whole.select(range(30)), "validation": whole.select(range(30, 40))}
    ).save_to_disk(tmp_path / "parts")
    found = load(tmp_path, path="parts", splits={"test": "validation"}, columns={"ignore": ["site"]})
    np.testing.assert_array_equal(found.train_x[:, 0], np.arange(30))
    np.testing.assert_array_equal(found.test_y, np.arange(30, 40) % 3)
    assert load(tmp_path, path="parts", columns={"ignore": ["site"]}).train_x.shape == (
        24,
        1,
    )  # no split `test`


def test_images_of_hugging_face_keep_pixels_and_class_names(hf, tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    kinds = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["dog", "cat"])})
    images = {"image": [Image.fromarray(one) for one in pixels], "label": [n % 2 for n in range(20)]}
    whole = hf.Dataset.from_dict(images, features=kinds)
    hf.DatasetDict({"train": whole.select(range(16)), "test": whole.select(range(16, 20))}).save_to_disk(
        tmp_path / "pets"
    )
    found = load(tmp_path, path="pets")
    np.testing.assert_array_equal(found.train_x, np.moveaxis(pixels[:16], 3, 1))
    np.testing.assert_array_equal(found.test_y, [0, 1, 0, 1])
    assert found.class_names == ("dog", "cat") and found.kind.name == "image"


def test_text_of_hugging_face_becomes_token_ids_in_a_run(hf, tmp_path):
    texts = [("good day", "bad night", "so so")[n % 3] for n in range(60)]
    hf.Dataset.from_dict({"text": texts, "label": [n % 3 for n in range(60)]}).save_to_disk(
        tmp_path / "texts"
    )
    data = {
        "dataset": "hf",
        "args": {"path": str(tmp_path / "texts"), "tokenizer": {"length": 6}},
        "clients": 2,
    }
    scenario = {
        "name": "texts",
        "rounds": 1,
        "data": data | {"transfer": {"size": 10}, "partition": {"scheme": "iid"}},
        "clients": [{"model": "bag"}],
        "engine": {"kind": "inline"},
    }
    assert fedkd.run(scenario, out=tmp_path / "run", progress=False).summary["status"] == "done"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({}, "needs a folder"),
        ({"path": "whole", "splits": {"test": "x"}}, "holds one data set"),
        ({"path": "parts", "splits": {"test": "tets"}}, "no split 'tets'"),
        ({"path": "parts", "splits": {"tets": "train"}}, "unknown key"),
        ({"path": "whole", "columns": {"label": "grad"}}, "no column 'grad'; did you mean 'grade'"),
        ({"path": "damaged"}, "cannot open 'damaged'"),
    ],
)
def test_wrong_data_of_hugging_face_is_told_in_one_line(hf, tmp_path, args, told):
    rows(hf).save_to_disk(tmp_path / "whole")
    hf.DatasetDict({"train": rows(hf)}).save_to_disk(tmp_path / "parts")
    (tmp_path / "damaged").mkdir()
    with pytest.raises(UserError, match=told) as error:
        load(tmp_path, **args)
    assert "\n" not in str(error.value)


PLUGIN = """
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

class Halves(Dataset):
    classes = ["low", "high"]
    def __init__(self, train=True, count=30):
        self.start, self.count = (0, count) if train else (count, 10)
    def __len__(self):
        return self.count
    def __getitem__(self, n):
        return torch.full((1, 4, 4), float(self.start + n)), n % 2

def single():
    return TensorDataset(torch.arange(80.0).reshape(40, 2), torch.arange(40) % 4)

def ragged():
    return [(torch.zeros(n + 1), 0) for n in range(4)]

class Ragged(Halves):
    def __getitem__(self, n):
        return torch.zeros(n + 1), 0

class Words(Halves):
    def __getitem__(self, n):
        return "word", 0

class Alone(Halves):
    def __getitem__(self, n):
        return torch.zeros(3)

class Stream(IterableDataset):
    def __iter__(self):
        return iter(())
"""


def test_a_class_of_torch_gives_both_splits_and_its_class_names(tmp_path):
    (tmp_path / "torchsets.py").write_text(PLUGIN)
    found = load(tmp_path, "torchsets:Halves", count=20)
    assert found.class_names == ("low", "high") and found.kind.name == "image"
    np.testing.assert_array_equal(found.train_x[:, 0, 0, 0], np.arange(20))
    np.testing.assert_array_equal(found.test_x[:, 0, 3, 3], np.arange(20, 30))
    np.testing.assert_array_equal(found.train_y, np.arange(20) % 2)


def test_one_data_set_of_torch_is_split_by_class(tmp_path):
    (tmp_path / "torchsets.py").write_text(PLUGIN)
    found = load(tmp_path, "torchsets:single")
    assert len(found.train_x) == 32 and np.bincount(found.test_y).tolist() == [2, 2, 2, 2]
    both = np.concatenate([found.train_x, found.test_x])
    np.testing.assert_array_equal(np.sort(both[:, 0]), np.arange(0, 80, 2))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Ragged", "samples must have one shape"),
        ("Words", "must hold numbers"),
        ("Alone", "must be a pair of a sample and a label, got Tensor"),
        ("Stream", "must be map-style"),
    ],
)
def test_a_bad_data_set_of_torch_is_told_in_one_line(tmp_path, name, told):
    (tmp_path / "torchsets.py").write_text(PLUGIN)
    with pytest.raises(UserError, match=told) as error:
        load(tmp_path, f"torchsets:{name}")
    assert "\n" not in str(error.value)


class EveryOther:
    """Deals rows in turn, as a partitioner of flwr-datasets is called."""

    def __init__(self, num_partitions: int, partition_by: str, step: int = 1, seed: int = 0) -> None:
        if step < 1:
            raise ValueError("step must be positive")
        self.num_partitions, self.step, self.seed, self.by = num_partitions, step, seed, partition_by

    def load_partition(self, number: int):
        assert self.by in self.dataset.column_names
        return self.dataset.select(range(number, len(self.dataset), self.num_partitions * self.step))


@pytest.fixture
def package(hf, monkeypatch):
    module = ModuleType("flwr_datasets.partitioner")
    module.EveryOther = EveryOther
    module.__all__ = ["EveryOther", "Partitioner"]
    monkeypatch.setitem(sys.modules, "flwr_datasets", ModuleType("flwr_datasets"))
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", module)


def test_a_partitioner_of_flwr_datasets_is_a_scheme(package):
    labels = np.arange(60) % 4
    scheme = Partition(scheme="flwr_datasets:EveryOther", args={"step": 2})
    dealt = plugged_partition(labels, 3, scheme, seed=0)
    for client, rows in enumerate(dealt):
        np.testing.assert_array_equal(rows, np.arange(client, 60, 6))


@pytest.mark.parametrize(
    ("scheme", "args", "told"),
    [
        ("EveryOhter", {}, "no partitioner 'EveryOhter'; did you mean 'EveryOther'"),
        ("EveryOther", {"stop": 1}, "unknown argument of 'EveryOther'; did you mean 'step'"),
        ("EveryOther", {"step": 0}, "step must be positive"),
        ("EveryOther", {"num_partitions": 2}, "makes 2 partitions, must be 3"),
        ("NaturalIdPartitioner", {}, "the scheme 'natural'"),
    ],
)
def test_a_wrong_partitioner_is_told(package, scheme, args, told):
    with pytest.raises(UserError, match=told):
        plugged_partition(
            np.arange(60) % 4, 3, Partition(scheme=f"flwr_datasets:{scheme}", args=args), seed=0
        )


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(UserError, match=r"needs flwr_datasets; .*\[partitioners\]"):
        partitioner_scheme("flwr_datasets:DirichletPartitioner")


def test_the_package_itself_deals_every_sample_once():
    pytest.importorskip("flwr_datasets")
    scheme = Partition(scheme="flwr_datasets:DirichletPartitioner", args={"alpha": 0.5})
    one, again, other = (plugged_partition(np.arange(600) % 6, 3, scheme, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(np.sort(np.concatenate(one)), np.arange(600))
    assert all(map(np.array_equal, one, again)) and not all(map(np.array_equal, one, other))
