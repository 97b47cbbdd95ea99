"""NumPy arrays as Flower records, copied only when bytes are needed."""

from collections.abc import Mapping
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

NUMPY_STYPE = "numpy.ndarray"


class NumpyArray(Array):
    """A Flower `Array` over a live NumPy array, which must not be written to afterwards.

    Flower's class copies every array twice per message. Here Flower's runtimes make the bytes on demand, and
    Ray moves the array through shared memory. `values` is read-only. `numpy` returns a copy, because q-FedAvg
    writes into it.
    """

    def __init__(self, values: np.ndarray) -> None:
        # np.ascontiguousarray would turn a scalar array into a vector
        contiguous = values if values.flags.c_contiguous else np.ascontiguousarray(values)
        view = contiguous.view()
        view.flags.writeable = False
        self.values = view
        self.dtype = str(view.dtype)
        self.shape = tuple(view.shape)
        self.stype = NUMPY_STYPE

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The array as `np.save` writes it."""
        buffer = BytesIO()
        np.save(buffer, self.values, allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> np.ndarray:
        return self.values.copy()

    def deflate(self) -> bytes:
        """Return Flower's header of the data, which must name a class of Flower's."""
        return Array(self.dtype, self.shape, self.stype, self.data).deflate()

    def __reduce__(self) -> tuple[object, ...]:
        return NumpyArray, (self.values,)


def values_of(array: Array) -> np.ndarray:
    """Return the values of an array, without a copy if possible; treat them as read-only."""
    return array.values if isinstance(array, NumpyArray) else array.numpy()


def arrays_to_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Return an ArrayRecord of `arrays`, which must not be written to afterwards."""
    record = ArrayRecord()
    record.update({name: NumpyArray(values) for name, values in arrays.items()})
    return record


def record_to_arrays(record: ArrayRecord) -> dict[str, np.ndarray]:
    """Return the arrays of a record; treat them as read-only."""
    return {name: values_of(array) for name, array in record.items()}


def payload_bytes(content: RecordDict) -> int:
    """Return the bytes of all arrays of a message, without headers."""
    return sum(
        np.dtype(array.dtype).itemsize * int(np.prod(array.shape, dtype=np.int64))
        for record in content.array_records.values()
        for array in record.values()
    )
