"""Functions of tensors on a CPU that count as one kernel where steps are recorded.

What is done with few numbers, one after the other, takes longer to ask torch for than to do. Written in NumPy
over the tensors' own memory it is quicker, but a recording would not see it. So such a function is made known
to torch as a kernel; a recording calls the function itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "fedkd"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_FUNCTIONS: dict[Any, Callable[..., Any]] = {}


def own_kernel(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that makes a function a kernel.

    Args:
        signature: What it takes and returns, as torch writes it: ``"add_one(Tensor(a!) values) -> ()"``; a
            tensor with ``!`` is changed in place.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = _LIBRARY.define(signature)
        _LIBRARY.impl(name, function, "CPU")
        kernel = getattr(getattr(torch.ops, NAMESPACE), name).default
        _FUNCTIONS[kernel] = function
        return kernel

    return register


def function_of(kernel: Any) -> Callable[..., Any]:
    """Return what computes a kernel of our own; of any other, the kernel itself."""
    return _FUNCTIONS.get(kernel, kernel)
