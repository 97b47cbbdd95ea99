"""A limit on the memory of building a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from fedkd.errors import UserError
from fedkd.models.kernel_mode import KernelMode, schema_of


class Allowance(KernelMode):
    """Limits the total bytes of tensors made from a size (`empty`, `zeros`, `randn`, …) in its block.

    `told` describes the limit in the error: ``a quarter of this machine's memory``.
    """

    def __init__(self, limit: int, told: str) -> None:
        super().__init__()
        self._limit = limit
        self._told = told
        self._asked = 0

    def run(self, kernel: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation, or raise a `UserError` if it asks for too much."""
        first = schema_of(kernel).arguments[:1]
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
