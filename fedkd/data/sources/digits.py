"""The 1,797 handwritten digits of 8×8 pixels that scikit-learn carries: no file is needed.

Alpaydin, E. & Kaynak, C. (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
"""

from __future__ import annotations

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.request import SourceRequest
from fedkd.data.split import own_test_split

TEST_SHARE = 0.2


def load(request: SourceRequest) -> Dataset:
    """Return the digits, [n, 1, 8, 8] in 0..1.

    scikit-learn ships no test split. Ours is a fifth of every class and belongs to the data set: it
    does not change with the scenario's seed.
    """
    from sklearn.datasets import load_digits

    request.arguments()
    digits = load_digits()
    x = (digits.images / 16.0).astype(np.float32)[:, None]
    y = digits.target.astype(np.int64)
    test = own_test_split(y, TEST_SHARE, seed=0)
    names = tuple(str(digit) for digit in range(10))
    return Dataset(request.name, names, x[~test], y[~test], x[test], y[test])
