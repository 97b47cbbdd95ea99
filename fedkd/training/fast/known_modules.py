"""Recordable code only computes, and the same from the same tensors at each call.

A class declares that by ``recordable: ClassVar[bool] = True``; then its training steps may be recorded and
replayed. A derived class that adds code must declare it again.
"""

from torch import nn

from fedkd.training.compat import has_hooks

TORCH = "torch.nn."
"""Torch's own modules declare nothing, and are recordable."""


def all_recordable(model: nn.Module) -> bool:
    """Return whether all modules of a model are recordable."""
    return all(map(is_recordable, model.modules()))


def is_recordable(module: nn.Module) -> bool:
    """Return whether a module is torch's or declares itself recordable, and has no hook or patch."""
    return (
        f"{type(module).__module__}.".startswith(TORCH) or declares_recordable(module)
    ) and not reached_into(module)


def declares_recordable(part: object, *methods: str) -> bool:
    """Return whether a class declares itself recordable, or inherits that.

    A class that overrides none of `methods`, which steps call, has its base's declaration. Without methods,
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
    """Return whether a hook or a patched forward adds to what a module's class says."""
    return has_hooks(module) or "forward" in vars(module)
