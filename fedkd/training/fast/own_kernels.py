"""CPU functions as single kernels of a recorded step, since recordings miss NumPy's work."""

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "fedkd"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_FUNCTIONS: dict[Any, Callable[..., Any]] = {}


def kernel_decorator(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a kernel, such as ``"add_one(Tensor(a!) values) -> ()"``; `!`: in place."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = _LIBRARY.define(signature)
        _LIBRARY.impl(name, function, "CPU")
        kernel = getattr(getattr(torch.ops, NAMESPACE), name).default
        _FUNCTIONS[kernel] = function
        return kernel

    return register


def function_of(kernel: Any) -> Callable[..., Any]:
    """Return the function of one of our kernels; other kernels are returned unchanged."""
    return _FUNCTIONS.get(kernel, kernel)
