"""A network for one task, with its effective parameters and output units."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.func import functional_call

from fedkd.storage import add_prefix, strip_prefix


class TaskModel(nn.Module):
    """The model of a task, for losses, strategies and evaluations.

    A learner never changes the module: substitutes replace its tensors during a call.

    Args:
        units: Output units ``[C_t]`` that the task's labels index into; None: all of them.
        substitutes: Tensors by the names of `network`'s parameters and buffers; those not named are its own.

    Attributes:
        notes: Results in evaluation mode that all batches share, by names of a learner's choosing.
    """

    recordable: ClassVar[bool] = True

    def __init__(
        self, network: nn.Module, units: Tensor | None, substitutes: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.units = units
        self.substitutes = dict(substitutes or {})
        self.notes: dict[str, Any] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    def substitute(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the effective parameters."""
        self.substitutes = dict(tensors)
        self.notes.clear()
        self._last = None

    def outputs(self, x: Tensor) -> Tensor:
        """Return all outputs ``[B, O]``; the last call's are cached."""
        if self._last is None or self._last[0] is not x:
            self._last = (x, self._call(self.network, self.substitutes, x))
        return self._last[1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the task's logits ``[B, C_t]``."""
        return self._of_task(self.outputs(x))

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate features ``[B, F]``."""
        reader = _Features(self.network)
        return self._call(reader, add_prefix("network.", self.substitutes), x)

    def head(self, features: Tensor) -> Tensor:
        """Return the task's logits ``[B, C_t]`` of penultimate features ``[B, F]``."""
        head: Any = self.network.head
        return self._of_task(self._call(head, strip_prefix("head.", self.substitutes), features))

    @staticmethod
    def _call(module: nn.Module, substitutes: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, substitutes, (x,)) if substitutes else module(x)

    def _of_task(self, outputs: Tensor) -> Tensor:
        return outputs if self.units is None else outputs.index_select(1, self.units)


class _Features(nn.Module):
    """Returns a network's features when called."""

    recordable: ClassVar[bool] = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        read: Any = self.network.features
        return read(x)
