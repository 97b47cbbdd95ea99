"""What links carried, written and read back."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fedkd.storage.digests import list_table_rounds
from fedkd.tracking.neighbours import read_links, write_links

HEARD = np.array([[False, True, False], [False, False, False], [True, True, False]])
SIZES = np.array([[0, 5, 0], [0, 0, 0], [7, 2**40, 0]])


def test_link_traffic_reads_back_as_written(tmp_path):
    write_links(tmp_path, 12, [2, 5, 6], HEARD, SIZES)
    found = read_links(tmp_path, 12)
    assert (found.round, found.clients) == (12, (2, 5, 6)) and list_table_rounds(
        tmp_path / "fusion", "links"
    ) == [12]
    assert_array_equal(found.heard, HEARD)
    assert_array_equal(found.sizes, SIZES)
    assert read_links(tmp_path, 1) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"sender": np.array([0, 1])},
        {"receiver": np.array([9, 9, 9])},
        {"bytes": np.array([1.5, 1, 1])},
        {"clients": np.array([[2, 5, 6]])},
        {"clients": np.array([], dtype=np.int64)},
    ],
)
def test_malformed_link_files_are_ignored(changes, tmp_path):
    arrays = {
        "clients": np.array([2, 5, 6]),
        "receiver": np.array([2, 6, 6]),
        "sender": np.array([5, 2, 5]),
        "bytes": np.array([5, 7, 9]),
    }
    (tmp_path / "fusion").mkdir()
    np.savez(tmp_path / "fusion" / "links-00001.npz", **arrays)
    assert read_links(tmp_path, 1) is not None
    np.savez(tmp_path / "fusion" / "links-00001.npz", **(arrays | changes))
    assert read_links(tmp_path, 1) is None
