"""A live NumPy array behaves as Flower's own serialised one."""

from __future__ import annotations

import pickle
from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedkd.federation.messages.arrays import NumpyArray, arrays_to_record, payload_bytes, record_to_arrays

grid = np.arange(12, dtype=np.float32).reshape(3, 4)
SAMPLES = {
    "matrix": grid,
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 5), dtype=np.float32),
    "half": grid.astype(np.float16),
    "integers": np.array([2**53 + 1, -7], dtype=np.int64),
    "booleans": np.array([True, False]),
    "transposed": grid.T,
    "strided": grid[::2, ::-1],
    "fortran": np.asfortranarray(grid),
}


@pytest.fixture(params=SAMPLES)
def values(request) -> np.ndarray:
    return SAMPLES[request.param]


def same(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert np.array_equal(got, wanted)


def test_an_array_describes_itself_as_flowers_does(values):
    ours, flowers = NumpyArray(values), Array(values)
    assert isinstance(ours, Array)
    assert (ours.dtype, ours.shape, ours.stype) == (flowers.dtype, flowers.shape, flowers.stype)
    same(np.load(BytesIO(ours.data), allow_pickle=False), values)
    same(ours.numpy(), values)


def test_the_bytes_and_id_of_an_array_equal_flowers():
    for name in ("matrix", "scalar", "empty", "half", "integers"):
        ours, flowers = NumpyArray(SAMPLES[name]), Array(SAMPLES[name])
        assert ours.data == flowers.data
        assert ours.deflate() == flowers.deflate()
        assert ours.object_id == flowers.object_id


def test_a_supernode_can_reassemble_an_array():
    # How messages travel between a SuperLink and its nodes: objects by their ids.
    content = RecordDict({"arrays": arrays_to_record(SAMPLES)})
    objects = {key: item.deflate() for key, item in get_all_nested_objects(content).items()}
    back = inflate_object_from_contents(content.object_id, objects)
    for name, wanted in SAMPLES.items():
        same(back.array_records["arrays"][name].numpy(), wanted)


def test_readers_share_a_read_only_array(values):
    own = values.copy()
    for shared in (NumpyArray(own).values, record_to_arrays(arrays_to_record({"x": own}))["x"]):
        same(shared, values)
        with pytest.raises(ValueError, match="read-only"):
            shared[...] = 0
    assert own.flags.writeable, "the owner's array must not change"


def test_arrays_of_flowers_class_may_be_written(values):
    array = NumpyArray(values)
    array.numpy()[...] = 1
    same(array.values, values)


def test_a_contiguous_array_is_not_copied():
    assert np.shares_memory(NumpyArray(grid).values, grid)
    assert np.shares_memory(NumpyArray(grid[1]).values, grid)
    assert np.shares_memory(record_to_arrays(arrays_to_record({"x": grid}))["x"], grid)


def test_out_of_band_pickling_shares_the_buffer():
    values = np.arange(1000, dtype=np.float32)
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(NumpyArray(values), protocol=5, buffer_callback=buffers.append)
    assert len(data) < 1000
    assert len(buffers) == 1
    back = pickle.loads(data, buffers=buffers)
    assert np.shares_memory(back.values, values)
    with pytest.raises(ValueError, match="read-only"):
        back.values[0] = 1.0


def test_in_band_pickling_restores_an_array(values):
    same(pickle.loads(pickle.dumps(NumpyArray(values))).numpy(), values)


def test_flower_serialisation_restores_an_array():
    content = RecordDict({"arrays": arrays_to_record(SAMPLES), "metrics": MetricRecord({"loss": 0.5})})
    back = recorddict_from_proto(recorddict_to_proto(content))
    received = record_to_arrays(back.array_records["arrays"])
    assert list(received) == list(SAMPLES), "the order of a model's tensors must survive"
    for name, wanted in SAMPLES.items():
        same(received[name], wanted)


def test_payload_counts_array_bytes_without_headers():
    content = RecordDict(
        {
            "a": arrays_to_record(
                {"x": np.zeros((3, 4), dtype=np.float16), "n": np.array(1, dtype=np.int64)}
            ),
            "b": ArrayRecord([np.zeros((0, 9)), np.zeros(2, dtype=np.float64)]),
            "m": MetricRecord({"loss": 0.5}),
        }
    )
    assert payload_bytes(content) == 3 * 4 * 2 + 8 + 0 + 16
    assert payload_bytes(RecordDict()) == 0
