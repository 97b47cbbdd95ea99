"""One task of a stream: a federation's data, perhaps with changed pixels."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from fedkd.data.federated import ClientData, FederatedData
from fedkd.data.streams.pixels import Transform


class Tests(NamedTuple):
    """A client's own and the common test samples and labels of a task."""

    local: tuple[np.ndarray, np.ndarray]
    common: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a stream."""

    index: int
    name: str  # for people: "0 1" (its classes), "permutation 3", "36°", "fashion-mnist"
    units: tuple[int, ...]
    """Output units that its labels index into: a sample with label y belongs to unit `units[y]`."""
    own_units: tuple[int, ...]
    """Units of the classes that occur in it, in label order; `units` may have those of all classes."""
    data: FederatedData
    """Its samples before `transform`; tasks that differ only in their pixels share the arrays."""
    transform: Transform | None = None
    _made: WeakValueDictionary[str, np.ndarray] = field(
        default_factory=WeakValueDictionary, init=False, repr=False
    )

    @property
    def transfer_x(self) -> np.ndarray:
        """The task's transfer set [M, *input_shape]."""
        return self._common("transfer_x")

    @property
    def test_x(self) -> np.ndarray:
        """The samples [K, *input_shape] of the task's common test set."""
        return self._common("test_x")

    def client(self, n: int) -> ClientData:
        """Return the data of client `n`: views where nothing is transformed, else copies."""
        data = self.data.client(n)
        if self.transform is None:
            return data
        return replace(
            data,
            train_x=self.transform(data.train_x),
            test_x=self.transform(data.test_x),
            transfer_x=self.transfer_x,
            global_x=self.test_x,
        )

    def tests(self, n: int) -> Tests:
        """Return the test samples of client `n`, without its training samples."""
        data = self.data.client(n)
        own = data.test_x if self.transform is None else self.transform(data.test_x)
        return Tests(local=(own, data.test_y), common=(self.test_x, data.global_y))

    def _common(self, name: str) -> np.ndarray:
        """Return all clients' samples, shared in this process while in use."""
        stored = getattr(self.data, name)
        if self.transform is None:
            return stored
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = self.transform(stored)
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields without the transformed samples."""
        return {name: value for name, value in self.__dict__.items() if name != "_made"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the fields of a pickled task."""
        self.__dict__.update(state, _made=WeakValueDictionary())
