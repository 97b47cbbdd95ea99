"""Access to every kernel that torch runs, and torch's private names for models."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fedkd.errors import UserError


def is_transformed() -> bool:
    """Return whether a transformation of `torch.func`, such as `vmap`, is active."""
    return torch._C._are_functorch_transforms_active()


def kernel_schema(kernel: Any) -> Any:
    """Return the signature of a kernel."""
    return kernel._schema


class KernelMode(TorchDispatchMode):
    """A base class: in its block, `run` gets every kernel."""

    def run(self, kernel: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a kernel and return its result."""
        return kernel(*args, **kwargs)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Hand a kernel over to `run`."""
        return self.run(func, args, kwargs or {})

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class FlopCounter(KernelMode):
    """Counts operations of matrix products and convolutions by torch's formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def run(self, kernel: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation and count it; one without a formula counts by its parts."""
        formula = flop_registry.get(kernel._overloadpacket)
        if formula is None:
            with self:
                parts = kernel.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = kernel(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


class Allowance(KernelMode):
    """Limits the bytes of all tensors made from a size in its block; `told` describes the limit."""

    def __init__(self, limit: int, told: str) -> None:
        super().__init__()
        self._limit = limit
        self._told = told
        self._asked = 0

    def run(self, kernel: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation, or raise a `UserError` if it asks for too much."""
        first = kernel_schema(kernel).arguments[:1]
        if first and first[0].name == "size" and args:
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            self._asked += prod(args[0]) * dtype.itemsize
            if self._asked > self._limit:
                raise UserError(
                    f"asks for {self._asked / 1e9:,.1f} GB or more; it may take {self._limit / 1e9:,.1f} GB,"
                    f" {self._told}",
                    key="clients.model",
                )
        return kernel(*args, **kwargs)
