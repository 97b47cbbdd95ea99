"""Seeing every kernel that torch runs, without its compiler (see `fedkd.training.uncompiled`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class KernelMode(TorchDispatchMode):
    """A mode to be derived from: its `__torch_dispatch__` is called as it is."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class FlopCounter(KernelMode):
    """Counts multiplications and additions of matrix products and convolutions, by torch's own formulas.

    Attributes:
        total: Floating-point operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count what it does; one without a formula counts by its parts."""
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result
