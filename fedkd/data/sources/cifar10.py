"""CIFAR-10: ten classes."""

from __future__ import annotations

from fedkd.data.dataset import Dataset
from fedkd.data.request import SourceRequest
from fedkd.data.sources.cifar import CifarFormat, load_cifar

FORMAT = CifarFormat(
    archive="cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test_file="test_batch.bin",
    names_file="batches.meta.txt",
    label_bytes=1,
    torchvision_class="CIFAR10",
    label_key="labels",
)


def load(request: SourceRequest) -> Dataset:
    """Return CIFAR-10, uint8 [n, 3, 32, 32]."""
    return load_cifar(request, FORMAT)
