"""torch's optimisers without its compiler, which costs a second and tens of megabytes to import."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

Optimizers = TypeVar("Optimizers", bound=Optimizer)


@functools.cache
def uncompiled_class(optimizer: type[Optimizers]) -> type[Optimizers]:
    """Return the unwrapped class of a torch optimiser, with equal results bit for bit."""
    guarded = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    own: dict[str, Any] = {name: inspect.unwrap(getattr(optimizer, name)) for name in guarded}
    own["step"] = _without_gradients(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), {"__doc__": optimizer.__doc__, **own})


def _without_gradients(step: Callable[..., Any]) -> Callable[..., Any]:
    def taken(self: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        with torch.no_grad():
            return step(self, closure)

    return functools.update_wrapper(taken, step)
