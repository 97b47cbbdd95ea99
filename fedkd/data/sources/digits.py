"""The 1,797 handwritten digits of 8×8 pixels in scikit-learn: no file is needed.

Alpaydin, E. & Kaynak, C. (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.partitions.stratified import own_test_split
from fedkd.data.request import SourceRequest

TEST_SHARE = 0.2


def load(request: SourceRequest) -> Dataset:
    """Return the digits, [n, 1, 8, 8] in 0..1; a fifth of every class is the test split."""
    request.arguments()
    rows = _rows()
    x = (rows[:, :-1].reshape(-1, 1, 8, 8) / 16.0).astype(np.float32)
    y = rows[:, -1].astype(np.int64)
    test = own_test_split(y, TEST_SHARE, seed=0)
    names = tuple(str(digit) for digit in range(10))
    return Dataset(request.name, names, x[~test], y[~test], x[test], y[test])


@cache  # a bench of small runs would read it repeatedly
def _rows() -> np.ndarray:
    """Return pixels and label of every digit `[1797, 65]` uint8, read-only."""
    rows = _read().astype(np.uint8)
    rows.flags.writeable = False
    return rows


def _read() -> np.ndarray:
    # Without scikit-learn if possible: its import takes as long as all work before the first round.
    package = find_spec("sklearn")
    for folder in package.submodule_search_locations or () if package else ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])
