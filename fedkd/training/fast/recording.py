"""Recordings of a step's kernels below autograd, for replay; tensors are referenced weakly."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils.weak import WeakTensorKeyDictionary

from fedkd.models import KernelMode
from fedkd.training.compat import below_autograd, kernel_schema, tree_leaves, tree_map_only
from fedkd.training.fast.own_kernels import function_of

Step = Callable[[], "list[Tensor]"]
"""Takes a step and returns its results, such as the loss."""

DIRECT = {
    *("_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_log_softmax", "_log_softmax_backward_data"),
    *("_softmax", "abs", "add", "addcmul", "addmm", "addmv", "all", "argmax", "as_strided", "bmm"),
    *("cat", "clamp", "clone", "div", "dot", "embedding", "empty_like", "eq", "exp", "flip", "ge"),
    *("index_select", "log", "maximum", "minimum", "mm", "mul", "mv", "native_group_norm"),
    *("native_layer_norm", "neg", "ones_like", "permute", "relu", "rsqrt", "rsub", "select", "sub"),
    *("sum", "t", "where", "zeros_like"),
}
"""Kernels that `torch` has functions for, which find them faster than the operators of `torch.ops` do."""
METHODS = {
    *("add_", "addmm_", "copy_", "expand", "index_add", "mul_", "new_empty", "new_zeros", "norm", "pow"),
    *("split_with_sizes", "sqrt", "square", "transpose", "view"),
}
"""Kernels that tensors have methods for, likewise."""


class DecidedOtherwiseError(Exception):
    """A step branches differently from its recording, before any change."""


class Recording:
    """The kernels of a step as a function of its tensors: a graph with one placeholder for each."""

    def __init__(self, graph: Graph) -> None:
        self._forward: Callable[..., list[Tensor]] = GraphModule(nn.Module(), graph).forward

    def replay(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Run the kernels and return the step's results; `DecidedOtherwiseError` for another branch."""
        with torch.no_grad(), below_autograd():
            return self._forward(*tensors)


def record(step: Step, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Recording | None]:
    """Take a step and record its kernels; None: it cannot be replayed."""
    recorder = _Recorder(tensors)
    with recorder:
        told = step()
    try:
        graph = _graph(recorder, len(tensors), told)
        return told, None if graph is None else Recording(graph)
    except Exception:  # a kernel with an argument that cannot be recorded, such as a generator
        return told, None


@dataclass(frozen=True)
class _Number:
    """Stands for a tensor, an input or a result; −1: an unknown one."""

    value: int


@dataclass(frozen=True)
class _Call:
    """A kernel that was run; `looks`: its result depends on values, `pure`: it changes nothing."""

    kernel: Any
    args: Any
    kwargs: Any
    result: Any
    looks: bool
    pure: bool
    changes_outside: bool


class _Recorder(KernelMode):
    """Records every kernel below autograd, given the tensors that exist before."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        # Weak keys: a later tensor may reuse the id of a deleted one.
        self._numbers = WeakTensorKeyDictionary()
        self._count = len(tensors)
        self._outside = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        for number, tensor in enumerate(tensors):
            self._numbers[tensor] = number

    def number(self, tensor: Tensor) -> _Number:
        return _Number(self._numbers.get(tensor, -1))

    def run(self, kernel: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        noted_args, noted_kwargs = tree_map_only(Tensor, self.number, (args, kwargs))
        result = kernel(*args, **kwargs)
        if kernel.namespace == "profiler":
            return result
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor not in self._numbers:
                self._numbers[tensor] = self._count
                self._count += 1
        if kernel is _VIEW and result.shape == args[0].shape and result.stride() == args[0].stride():
            self._numbers[result] = self._numbers.get(args[0], -1)
            return result
        told = tree_map_only(Tensor, self.number, result)
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        draws, written = torch.Tag.nondeterministic_seeded in kernel.tags, _written(kernel, args, kwargs)
        changes = draws or any(t.untyped_storage().data_ptr() in self._outside for t in written)
        looks, pure = _looks(kernel, tensors), not (draws or written)
        self.calls.append(_Call(kernel, noted_args, noted_kwargs, told, looks, pure, changes))
        return result


def _written(kernel: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    schema = kernel_schema(kernel)
    if "batch_norm" in schema.name:  # some of its kernels do not declare their changes of statistics
        written: list[Any] = [*args, *kwargs.values()]
    else:
        by_place = zip(schema.arguments, args, strict=False)
        found = [*by_place, *((a, kwargs[a.name]) for a in schema.arguments if a.name in kwargs)]
        written = [value for a, value in found if a.alias_info is not None and a.alias_info.is_write]
    return [value for value in tree_leaves(written) if isinstance(value, Tensor)]


def _looks(kernel: Any, tensors: Sequence[Tensor]) -> bool:
    if kernel is _INDEX:  # the shape of its result depends on masks alone
        return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors[1:])
    return any(tag in kernel.tags for tag in _READS_VALUES)


_READS_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_VIEW = torch.ops.aten.view.default
_INDEX = torch.ops.aten.index.Tensor
_SAME = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
_SLICE, _TRANSPOSE = torch.ops.aten.slice.Tensor, torch.ops.aten.t.default
_ITEM = torch.ops.aten._local_scalar_dense.default


def _graph(recorder: _Recorder, inputs: int, told: Sequence[Tensor]) -> Graph | None:
    """Return kernels as a function of tensors; None: they use unknown tensors or values."""
    graph = Graph()
    nodes: dict[int, Any] = {number: graph.placeholder(f"t{number}") for number in range(inputs)}
    turned: dict[Node, Any] = {}
    pure: set[Node] = set()
    changed = False

    def known(number: _Number) -> Any:
        return nodes[number.value]  # an unknown tensor makes the recording useless

    for call in recorder.calls:
        args, kwargs = tree_map_only(_Number, known, (call.args, call.kwargs))
        if call.kernel is _ITEM and isinstance(call.result, bool) and not changed:
            graph.call_function(_insist, (args[0], call.result))
            continue
        if call.looks:
            return None
        changed = changed or call.changes_outside
        if call.kernel in _SAME:  # without autograd
            nodes[call.result.value] = args[0]
            continue
        if call.kernel is _TRANSPOSE and args[0] in turned:
            nodes[call.result.value] = turned[args[0]]
            continue
        node = _node(graph, call.kernel, args, kwargs)
        if call.pure:
            pure.add(node)
        if call.kernel is _TRANSPOSE:
            turned[node] = args[0]
        _name(nodes, graph, node, call.result)
    ends = [recorder.number(tensor).value for tensor in told]
    if any(end not in nodes for end in ends):
        return None
    graph.output([nodes[end] for end in ends])
    for node in reversed(graph.nodes):  # unused results, such as a gradient that was replaced
        if not node.users and (node in pure or node.target is operator.getitem):
            graph.erase_node(node)
    return graph


def _node(graph: Graph, kernel: Any, args: Any, kwargs: Any) -> Node:
    name = kernel_schema(kernel).name.removeprefix("aten::")
    if kernel.namespace == "aten" and name in DIRECT:
        return graph.call_function(getattr(torch, name), args, kwargs)
    if kernel.namespace == "aten" and name in METHODS:
        return graph.call_method(name, args, kwargs)
    if kernel is _SLICE and not kwargs and len(args) > 2 and args[1] >= 0:
        tensor, dimension, *bounds = args
        return graph.call_function(operator.getitem, (tensor, (*[slice(None)] * dimension, slice(*bounds))))
    return graph.call_function(function_of(kernel), args, kwargs)


def _insist(value: Tensor, expected: bool) -> None:
    if bool(value) is not expected:
        raise DecidedOtherwiseError


def _name(nodes: dict[int, Any], graph: Graph, node: Node, result: Any) -> None:
    """Map a tensor to the node that makes it; in-place changes keep the node."""
    if isinstance(result, _Number):
        nodes.setdefault(result.value, node)
    elif isinstance(result, tuple | list):
        for place, part in enumerate(result):
            if isinstance(part, _Number) and part.value not in nodes:
                nodes[part.value] = graph.call_function(operator.getitem, (node, place))
