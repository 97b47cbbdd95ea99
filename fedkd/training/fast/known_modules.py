"""Recordable modules: pure computations on tensors.

Recordable code gives the same results for the same tensors, and has no other effect. A class declares
``recordable: ClassVar[bool] = True`` to allow recorded training steps. A derived class with more code must
declare it again.
"""

from torch import nn

from fedkd.training.compat import has_hooks

TORCH = "torch.nn."
"""Torch's own modules declare nothing, and are recordable."""


def all_recordable(model: nn.Module) -> bool:
    """Return whether all modules of a model are recordable."""
    return all(map(is_recordable, model.modules()))


def is_recordable(module: nn.Module) -> bool:
    """Return whether a module, torch's or declared recordable, is free of hooks and patches."""
    return (
        f"{type(module).__module__}.".startswith(TORCH) or declares_recordable(module)
    ) and not reached_into(module)


def declares_recordable(part: object, *methods: str) -> bool:
    """Return whether a class declares itself recordable, or inherits that.

    A class inherits the declaration unless it overrides one of the `methods` of a step. Without `methods`,
    each class declares for itself.
    """
    for cls in type(part).__mro__:
        own = vars(cls)
        if "recordable" in own:
            return bool(own["recordable"])
        if not methods or any(method in own for method in methods):
            return False
    return False


def reached_into(module: nn.Module) -> bool:
    """Return whether a hook or a patched forward changes a module's class behaviour."""
    return has_hooks(module) or "forward" in vars(module)
