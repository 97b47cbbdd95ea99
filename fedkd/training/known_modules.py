"""Modules of which it is known what a forward pass does: torch's and fedkd's own, that nobody has changed."""

from __future__ import annotations

from torch import nn

KNOWN_MODULES = ("torch.nn.", "fedkd.")


def all_known(model: nn.Module) -> bool:
    """Return whether a model is made of such modules alone."""
    return all(map(is_known, model.modules()))


def is_known(module: nn.Module) -> bool:
    """Return whether a module's forward pass is its class's own, and one of `KNOWN_MODULES`."""
    return f"{type(module).__module__}.".startswith(KNOWN_MODULES) and not reached_into(module)


def reached_into(module: nn.Module) -> bool:
    """Return whether a module does something besides what its class says: by a hook, or a patched forward."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    hooks = hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in vars(module)
