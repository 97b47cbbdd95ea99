"""Fashion-MNIST: 60,000 + 10,000 images of clothes of 28×28 pixels (Xiao, Rasul & Vollgraf, 2017)."""

from __future__ import annotations

from fedkd.data.dataset import Dataset
from fedkd.data.request import SourceRequest
from fedkd.data.sources.idx import load_idx_dataset

CLASS_NAMES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def load(request: SourceRequest) -> Dataset:
    """Return Fashion-MNIST, uint8 [n, 1, 28, 28]."""
    return load_idx_dataset(request, "FashionMNIST", CLASS_NAMES)
