from __future__ import annotations

from dataclasses import fields
from io import BytesIO

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fedkd.storage.digests import list_table_rounds
from fedkd.tracking.neighbours import TransferMap, read_transfer_map, write_transfer_map

GAIN = np.array([[0.0, -0.25], [0.125, np.nan]])


def arrays_of(**changes) -> bytes:
    content = BytesIO()
    arrays = {"clients": np.arange(2), "gain_local": GAIN, "gain_global": GAIN} | changes
    np.savez(content, **{name: values for name, values in arrays.items() if values is not None})
    return content.getvalue()


def test_files_read_back_and_repeat_byte_for_byte(tmp_path):
    by_class = np.stack([GAIN, 2 * GAIN, 3 * GAIN], axis=-1)
    written = TransferMap(12, (1, 4), GAIN, -GAIN, {"shift": GAIN + 1}, by_class, GAIN / 2)
    write_transfer_map(tmp_path, written)
    file = tmp_path / "transferability" / "round-00012.npz"
    first = file.read_bytes()
    write_transfer_map(tmp_path, written)
    assert file.read_bytes() == first and list_table_rounds(tmp_path / "transferability", "round") == [12]
    read = read_transfer_map(tmp_path, 12)
    assert read is not None and read.clients == (1, 4) and read.predicted.keys() == {"shift"}
    for name in (field.name for field in fields(TransferMap)):
        if name not in ("round", "clients", "predicted"):
            assert_array_equal(getattr(read, name), getattr(written, name))
    assert_array_equal(read.predicted["shift"], GAIN + 1)
    assert read_transfer_map(tmp_path, 13) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04K\x01.",
        arrays_of(clients=np.array([0, 0])),
        arrays_of(clients=np.array([-1, 2])),
        arrays_of(clients=np.arange(3)),
        arrays_of(clients=None),
        arrays_of(gain_local=None),
        arrays_of(gain_global=np.zeros((2, 3))),
        arrays_of(predicted_shift=np.array([["a", "b"], ["c", "d"]])),
        arrays_of(complement_by_class=np.zeros((3, 2, 2))),
        arrays_of(transfer_rate=np.zeros((2, 2, 2))),
        arrays_of(gain_local=np.array([[{}, 1], [2, 3]], dtype=object)),
    ],
)
def test_other_content_is_not_read_as_a_map(tmp_path, content):
    (tmp_path / "transferability").mkdir()
    (tmp_path / "transferability" / "round-00001.npz").write_bytes(content)
    assert (
        list_table_rounds(tmp_path / "transferability", "round") == [1]
        and read_transfer_map(tmp_path, 1) is None
    )
