"""MNIST: 60,000 + 10,000 handwritten digits of 28×28 pixels (LeCun, Cortes & Burges, 1998)."""

from __future__ import annotations

from fedkd.data.dataset import Dataset
from fedkd.data.request import SourceRequest
from fedkd.data.sources.idx import load_idx_dataset


def load(request: SourceRequest) -> Dataset:
    """Return MNIST, uint8 [n, 1, 28, 28]."""
    return load_idx_dataset(request, "MNIST", tuple(str(digit) for digit in range(10)))
