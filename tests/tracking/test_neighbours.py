from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fedkd.storage.digests import list_table_rounds
from fedkd.tracking import neighbours
from fedkd.tracking.neighbours import read_neighbours, write_neighbours

W = np.array([[0.5, 0.2, 0.3], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0]])


def test_files_read_back_and_repeat_byte_for_byte(tmp_path):
    write_neighbours(tmp_path, 3, (1, 4, 7), W, distances=W * 2)
    file = tmp_path / "fusion" / "round-00003.npz"
    first = file.read_bytes()
    write_neighbours(tmp_path, 3, (1, 4, 7), W, distances=W * 2)
    assert file.read_bytes() == first
    read = read_neighbours(tmp_path, 3)
    assert read is not None and read.clients == (1, 4, 7) and read.left_out is None and read.senders is None
    assert_array_equal(read.weights, W.astype(np.float32))
    assert_array_equal(read.distances, (W * 2).astype(np.float32))
    assert list_table_rounds(tmp_path / "fusion", "round") == [3]


def test_the_greatest_weights_of_many_clients_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "MOST_WHOLE", 2)
    monkeypatch.setattr(neighbours, "KEPT", 2)
    write_neighbours(tmp_path, 100_000, (1, 4, 7), W, left_out=W / 2)
    read = read_neighbours(tmp_path, 100_000)
    assert read is not None and list_table_rounds(tmp_path / "fusion", "round") == [100_000]
    assert_array_equal(read.senders, [[1, 7], [4, 1], [7, 1]])
    assert_array_equal(read.weights, np.float32([[0.5, 0.3], [0.5, 0.25], [1.0, 0.0]]))
    assert_array_equal(read.left_out, read.weights / 2)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04K\x01."])
def test_other_content_is_not_read_as_a_table(tmp_path, content):
    (tmp_path / "fusion").mkdir()
    (tmp_path / "fusion" / "round-00001.npz").write_bytes(content)
    (tmp_path / "fusion" / "round-x.npz").write_bytes(content)
    assert list_table_rounds(tmp_path / "fusion", "round") == [1]
    assert read_neighbours(tmp_path, 1) is None and read_neighbours(tmp_path, 2) is None


def test_tables_of_other_shapes_are_not_read(tmp_path):
    (tmp_path / "fusion").mkdir()
    np.savez(tmp_path / "fusion" / "round-00001.npz", clients=np.arange(2), weights=np.zeros((2, 3)))
    np.savez(tmp_path / "fusion" / "round-00002.npz", clients=np.arange(2))
    assert read_neighbours(tmp_path, 1) is None and read_neighbours(tmp_path, 2) is None
