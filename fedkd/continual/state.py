"""Typed records of a learner's memory.

A record names each kind of tensor once. The tensors lie in ``context.memory`` under these names, so that
checkpoints and counts of bytes need no further code::

    class Anchors(LearnerState):
        anchor = Table()       # by parameter:        Anchors(context).anchor["body.0.weight"]
        mask = Table()         # by task and layer:   Anchors(context).mask[task, "body.0"]
        constant = Value()     # one tensor or None:  Anchors(context).constant
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.storage import add_prefix, strip_prefix

Key = str | int | tuple[str | int, ...]


class TensorTable(MutableMapping[Key, Tensor]):
    """The tensors of one kind in a learner's memory, keyed by names and numbers."""

    def __init__(self, memory: dict[str, Tensor], kind: str) -> None:
        self._memory, self._kind = memory, kind

    def name_of(self, key: Key) -> str:
        """Return the name of a tensor in the memory."""
        parts = key if isinstance(key, tuple) else (key,)
        return "/".join([self._kind, *map(str, parts)])

    def __getitem__(self, key: Key) -> Tensor:
        return self._memory[self.name_of(key)]

    def __setitem__(self, key: Key, tensor: Tensor) -> None:
        self._memory[self.name_of(key)] = tensor

    def __delitem__(self, key: Key) -> None:
        del self._memory[self.name_of(key)]

    def __iter__(self) -> Iterator[Key]:
        return iter(self.part())

    def __len__(self) -> int:
        return len(self.part())

    def part(self, *key: str | int) -> dict[str, Tensor]:
        """Return the tensors below a key prefix, by the rest of their keys."""
        return strip_prefix(self.name_of(key) + "/", self._memory)

    def in_memory(self, *key: str | int) -> dict[str, Tensor]:
        """Return the same tensors by their names in the memory, for optimisers."""
        return add_prefix(self.name_of(key) + "/", self.part(*key))

    def put(self, tensors: Mapping[str, Tensor], *key: str | int) -> None:
        """Store tensors below a key prefix, by the rest of their keys."""
        self._memory.update(add_prefix(self.name_of(key) + "/", tensors))

    def drop(self, *key: str | int) -> None:
        """Delete the tensors below a key prefix."""
        for name in self.in_memory(*key):
            del self._memory[name]


class TableField:
    """Declares a `TensorTable` of a record, named like its attribute, below the record's prefix."""

    def __set_name__(self, owner: type[LearnerState], name: str) -> None:
        self._kind = owner.prefix + name

    def __get__(self, record: LearnerState, owner: type[LearnerState]) -> TensorTable:
        return TensorTable(record.memory, self._kind)


class Value:
    """Declares one tensor of a record, named like its attribute; None: it is absent."""

    def __set_name__(self, owner: type[LearnerState], name: str) -> None:
        self._kind = owner.prefix + name

    def __get__(self, record: LearnerState, owner: type[LearnerState]) -> Tensor | None:
        return record.memory.get(self._kind)

    def __set__(self, record: LearnerState, tensor: Tensor | None) -> None:
        if tensor is None:
            record.memory.pop(self._kind, None)
        else:
            record.memory[self._kind] = tensor


class LearnerState:
    """Base of records."""

    prefix = ""
    """Begins all names of the record in the memory; records of other owners have others."""

    def __init__(self, context: LearnerContext) -> None:
        self.memory = context.memory
