"""Private names of torch in training, tested with torch 2.13."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormWithStatistics
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map_only as tree_map_only

from fedkd.models import is_transformed as is_transformed
from fedkd.models import kernel_schema as kernel_schema

__all__ = ["BatchNorm", "NormWithStatistics"]
below_autograd: Callable[[], AbstractContextManager[Any]] = getattr(
    torch._C, "_AutoDispatchBelowAutograd", nullcontext
)
"""Skips autograd's checks of kernel arguments, if torch can."""


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks of its forward or backward pass."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def two_sided_padding(convolution: nn.Conv2d) -> Sequence[int]:
    """Return the padding of a convolution as `torch.nn.functional.pad` has it."""
    return convolution._reversed_padding_repeated_twice


def tensor_version(tensor: Tensor) -> int:
    """Return a counter of a tensor's in-place changes."""
    return tensor._version
