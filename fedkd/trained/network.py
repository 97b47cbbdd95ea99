"""Self-contained networks: with a task's effective tensors, and as Python source without fedkd."""

import builtins
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from fedkd.models import Conv2d, Flatten, MaxPool2d, blank_inputs, evaluation_mode

HEADER = '''"""The networks of a federation's clients, generated from their traces."""

import torch
from torch import nn


def _put(root, path, part, buffer=False):
    *parents, last = path.split(".")
    for name in parents:
        if not hasattr(root, name):
            root.add_module(name, nn.Module())
        root = getattr(root, name)
    if buffer:
        root.register_buffer(last, part)
    else:
        setattr(root, last, part)
'''
ZOO = (Conv2d, MaxPool2d, Flatten)  # the zoo's layers compute the same as torch's layers of these names
TRIED = 4  # samples that compare the source with the network


class OfUnits(nn.Module):
    """A network ``[B, *input_shape]`` → ``[B, O]``, reduced to the outputs `units` ``[C]``."""

    recordable: ClassVar[bool] = True

    def __init__(self, network: nn.Module, units: Tensor) -> None:
        super().__init__()
        self.network = network
        self.units: Tensor
        self.register_buffer("units", units.detach().cpu().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, C]``."""
        return self.network(x).index_select(1, self.units)


def with_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Replace a network's tensors by name and return the network."""
    own = dict(network.named_parameters()) | dict(network.named_buffers())
    with torch.no_grad():
        for name, values in tensors.items():
            own[name].copy_(values.detach())
    return network


def network_source(
    network: nn.Module, name: str, input_shape: Sequence[int], dtype: np.dtype | type = np.float32
) -> str | None:
    """Return torch-only source of a class that computes a network in evaluation mode.

    The source comes from a symbolic trace. A test checks that it takes the network's tensors and gives the
    same outputs. None: the control flow depends on the samples. The network is on the CPU.
    """
    network = network.eval()
    try:
        source = _written(network, name)
        namespace: dict[str, Any] = {}
        exec(compile(f"{HEADER}\n\n{source}", name, "exec"), namespace)  # noqa: S102  source that was written here
        rebuilt: nn.Module = namespace[name]().eval()
        rebuilt.load_state_dict(network.state_dict())
        with evaluation_mode(network), evaluation_mode(rebuilt):
            x = blank_inputs(TRIED, tuple(input_shape), dtype)
            if x.is_floating_point():
                x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
            if not torch.allclose(rebuilt(x), network(x), rtol=1e-4, atol=1e-5):
                return None
    except Exception:  # a user's module may raise anything while it is traced or printed
        return None
    return source


class _Tracer(fx.Tracer):
    """Keeps the zoo's layers whole, as torch's layers of the same names."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in ZOO or super().is_leaf_module(m, module_qualified_name)


def _written(network: nn.Module, name: str) -> str:
    traced = fx.GraphModule(network, _Tracer().trace(network))
    put = []
    called = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    for path, module in network.named_modules():
        if path in called:
            kind = type(module).__name__
            if getattr(nn, kind, None) is not type(module) and type(module) not in ZOO:
                raise TypeError(f"{kind} is not a torch module")
            put.append(f"_put(self, {path!r}, nn.{kind}({module.extra_repr()}))")
    held = tuple(f"{path}." for path in called)
    for path, tensor in network.state_dict(keep_vars=True).items():
        if not path.startswith(held):  # read by the trace, but not used for samples
            shape, kind = list(tensor.shape), str(tensor.dtype)
            made = f"torch.empty({shape}, dtype={kind})"
            learns = f"nn.Parameter({made}, requires_grad={tensor.requires_grad})"
            held_as = learns if isinstance(tensor, nn.Parameter) else f"{made}, buffer=True"
            put.append(f"_put(self, {path!r}, {held_as})")
    code = traced.graph.python_code("self")
    body = re.sub(r";  \w+(?: = \w+)* = None", "", code.src)  # names deleted on the way
    head, _, rest = body.strip().partition("\n")
    body = re.sub(r" : [\w.]+(?=[,)])| -> [\w.]+(?=:)", "", head) + f"\n{rest}"  # without annotations
    imports = _imports(body, code.globals)
    lines = [
        f"class {name}(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        {line}" for line in put),
        "",
        *(f"    {line}".rstrip() for line in body.splitlines()),
    ]
    return "\n".join([*imports, *([""] * 2 if imports else []), *lines, ""])


def _imports(source: str, names: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, found in sorted(names.items()):
        known = name in ("torch", "nn", "__doc__") or hasattr(builtins, name)
        if known or not re.search(rf"\b{name}\b", source):
            continue
        if isinstance(found, str):  # an annotation
            lines.append(f"{name} = {found!r}")
        elif isinstance(found, float):  # inf and nan
            lines.append(f"{name} = float({str(found)!r})")
        elif isinstance(found, types.ModuleType):
            lines.append(f"import {found.__name__} as {name}")
        else:
            lines.append(f"from {found.__module__} import {found.__qualname__} as {name}")
    return lines
