"""CIFAR-100: a hundred (fine) classes."""

from __future__ import annotations

from fedkd.data.dataset import Dataset
from fedkd.data.request import SourceRequest
from fedkd.data.sources.cifar import CifarFormat, load_cifar

FORMAT = CifarFormat(
    archive="cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train_files=("train.bin",),
    test_file="test.bin",
    names_file="fine_label_names.txt",
    label_bytes=2,
    torchvision_class="CIFAR100",
    label_key="fine_labels",
)


def load(request: SourceRequest) -> Dataset:
    """Return CIFAR-100, uint8 [n, 3, 32, 32]."""
    return load_cifar(request, FORMAT)
