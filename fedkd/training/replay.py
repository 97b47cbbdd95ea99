"""Steps that are recorded once, kernel by kernel, and then replayed.

A step of a small model is mostly overhead: autograd takes down what it does in every forward pass and looks
for its way back, and the optimiser sorts its tensors anew. A recording is the list of kernels that a whole
step has run, optimiser included, as a function of the tensors that go into it. It runs the same kernels on
the same values in the same order, so that what comes of it is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_map

from fedkd.models.kernel_mode import KernelMode

PATIENCE = 64
"""Steps of a kind after which a recording is worth its while: making one takes as long as about so many."""

MOST = 256
"""Kinds, and recordings, after which all are forgotten: a learning rate of its own in every round makes new
kinds without end."""

Step = Callable[[], "list[Tensor]"]
"""Takes a step and returns what it tells, such as the loss."""


class Replays:
    """Recordings of steps by their kind, made when they pay.

    A recording is believed once it has done what the step itself does, to the last bit, on another batch than
    that it was made from. Steps that look at the values of their tensors, or use tensors that they were not
    said to, are never replayed.

    Args:
        patience: Steps of a kind before it is recorded; None: as many as recording one takes.
    """

    def __init__(self, patience: int | None = None) -> None:
        self._patience = PATIENCE if patience is None else patience
        self._count = count()
        self._numbers: dict[Hashable, int] = {}
        self._seen: dict[Hashable, int] = {}
        self._unproved: dict[Hashable, Recording] = {}
        self._proved: dict[Hashable, Recording] = {}
        self._refused: set[Hashable] = set()

    def number(self, kind: Hashable) -> int:
        """Return a number for a kind, the same for equal ones: the longest of them is quickly found then."""
        if kind not in self._numbers:
            if len(self._numbers) >= MOST:
                self._forget()
            self._numbers[kind] = next(self._count)
        return self._numbers[kind]

    def _forget(self) -> None:
        for table in (self._numbers, self._seen, self._unproved, self._proved, self._refused):
            table.clear()

    def take(
        self, kind: Hashable, step: Step, changed: Sequence[Tensor], read: Sequence[Tensor]
    ) -> list[Tensor]:
        """Take a step, or replay one of its kind, and return what it tells.

        Args:
            kind: Steps of equal kinds run the same kernels on tensors of the same shapes and layouts.
            step: Takes it.
            changed: Tensors that it may change in place, always in the same order.
            read: All others that it uses, in the same order too.
        """
        recording = self._proved.get(kind)
        if recording is not None:
            return recording.replay([*changed, *read])
        if kind in self._refused:
            return step()
        if kind in self._unproved:
            return self._prove(kind, step, changed, read)
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if self._seen[kind] <= self._patience:
            return step()
        if len(self._proved) >= MOST:
            self._forget()
        told, recording = record(step, [*changed, *read])
        if recording is None:
            self._refused.add(kind)
        else:
            self._unproved[kind] = recording
        return told

    def _prove(
        self, kind: Hashable, step: Step, changed: Sequence[Tensor], read: Sequence[Tensor]
    ) -> list[Tensor]:
        """Replay a step, then take it, and see whether there is a difference."""
        recording, before = self._unproved.pop(kind), _copies(changed)
        draws = torch.get_rng_state()
        try:
            replayed = [*_copies(recording.replay([*changed, *read])), *_copies(changed)]
        except Exception:  # whatever it is, a step that is taken does not depend on it
            replayed = []
        drawn = torch.get_rng_state()
        torch.set_rng_state(draws)
        for tensor, value in zip(changed, before, strict=True):
            tensor.data.copy_(value)
        told = step()
        same = len(replayed) == len(told) + len(changed) and all(map(_identical, replayed, [*told, *changed]))
        if same and torch.equal(drawn, torch.get_rng_state()):
            self._proved[kind] = recording
        else:
            self._refused.add(kind)
        return told


class Recording:
    """The kernels of a step as a function of the tensors that go into it.

    Args:
        graph: One placeholder for each tensor.
    """

    def __init__(self, graph: Graph) -> None:
        self._forward: Callable[..., list[Tensor]] = GraphModule(nn.Module(), graph).forward

    def replay(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Run the kernels and return what the step tells."""
        with torch.no_grad():
            return self._forward(*tensors)


def record(step: Step, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Recording | None]:
    """Take a step and write its kernels down.

    Args:
        step: Takes it.
        tensors: All that it uses or changes.

    Returns:
        What the step tells, and the recording; None: the step cannot be replayed.
    """
    recorder = _Recorder()
    with recorder:
        told = step()
    try:
        graph = _graph(recorder.calls, tensors, told)
        return told, None if graph is None else Recording(graph)
    except Exception:  # a kernel with an argument that cannot be written down, such as a generator
        return told, None


Call = tuple[Any, tuple[Any, ...], dict[str, Any], Any]
"""A kernel, its arguments, and what it returned."""


class _Recorder(KernelMode):
    """Writes down every kernel that is run, below autograd, with the tensors themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace != "profiler":
            self.calls.append((func, args, kwargs or {}, result))
        return result


_READS_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_DETACH, _COPY = torch.ops.aten.detach.default, torch.ops.aten.copy_.default
_EMPTY = torch.ops.aten.new_empty_strided.default


def _graph(calls: Sequence[Call], tensors: Sequence[Tensor], told: Sequence[Tensor]) -> Graph | None:
    """Return kernels as a function of tensors; None: they use others, or look at values."""
    graph = Graph()
    spared = _spared_copies(calls, [*tensors, *told])
    nodes: dict[int, Any] = {id(tensor): graph.placeholder(f"t{i}") for i, tensor in enumerate(tensors)}

    def known(value: Any) -> Any:
        return nodes[id(value)] if isinstance(value, Tensor) else value

    for number, (func, args, kwargs, result) in enumerate(calls):
        if any(tag in func.tags for tag in _READS_VALUES):
            return None
        if any(id(value) not in nodes for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)):
            return None  # it has come from elsewhere
        if func is _DETACH:  # the same to whoever keeps no account
            nodes[id(result)] = nodes[id(args[0])]
            continue
        if number in spared:
            copy, source = args[:2]
            graph.erase_node(nodes[id(copy)])
            nodes[id(copy)] = nodes[id(source)]
            continue
        node = graph.call_function(func, tree_map(known, args), tree_map(known, kwargs))
        _name(nodes, graph, node, result)
    if any(id(value) not in nodes for value in told):
        return None
    graph.output([nodes[id(value)] for value in told])
    return graph


def _spared_copies(calls: Sequence[Call], outside: Sequence[Tensor]) -> set[int]:
    """Return which kernels do no more than copy what nobody looks at any more.

    Autograd hands a gradient over as it is, unless somebody else holds it, as whoever records does.
    """
    last: dict[int, int] = {_memory(tensor): len(calls) for tensor in outside}
    for number, (_, args, kwargs, _) in enumerate(calls):
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                last[_memory(value)] = max(number, last.get(_memory(value), 0))
    spared = set()
    for number, (func, args, _, _) in enumerate(calls):
        made = calls[number - 1]
        if func is _COPY and made[0] is _EMPTY and made[3] is args[0]:
            copy, source = args[:2]
            alike = (
                copy.stride() == source.stride() and copy.shape == source.shape and copy.dtype == source.dtype
            )
            if alike and last[_memory(source)] == number:
                spared.add(number)
    return spared


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _name(nodes: dict[int, Any], graph: Graph, node: Node, result: Any) -> None:
    """Take down which node makes which tensor; what a kernel changes in place keeps its name."""
    if isinstance(result, Tensor):
        nodes.setdefault(id(result), node)
    elif isinstance(result, tuple | list):
        for place, part in enumerate(result):
            if isinstance(part, Tensor) and id(part) not in nodes:
                nodes[id(part)] = graph.call_function(_part, (node, place))


def _part(values: Sequence[Tensor], place: int) -> Tensor:
    return values[place]


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _identical(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other.detach())
