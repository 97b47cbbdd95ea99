"""Optimisers without torch's compiler do what torch's own do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedkd.training.fast.uncompiled import uncompiled_class

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
    "adam": (torch.optim.Adam, {"lr": 0.1, "fused": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.1, "fused": True}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.1, "momentum": 0.5}),
}


def trained(optimizer: type[torch.optim.Optimizer], **options) -> tuple[list[torch.Tensor], dict]:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2), torch.randn(5, 3)
    made = optimizer(model.parameters(), **options)
    for step in range(4):
        made.zero_grad()
        model(x).square().mean().backward()
        made.step()
        if step == 1:  # as over a checkpoint
            state = made.state_dict()
            made = optimizer(model.parameters(), **options)
            made.load_state_dict(state)
    return [parameter.detach() for parameter in model.parameters()], made.state_dict()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_uncompiled_optimisers_equal_torchs_to_the_bit(name):
    theirs, options = OPTIMIZERS[name]
    (weights, state), (own, own_state) = (
        trained(theirs, **options),
        trained(uncompiled_class(theirs), **options),
    )
    assert all(torch.equal(one, other) for one, other in zip(weights, own, strict=True))
    assert own_state["param_groups"] == state["param_groups"]
    torch.testing.assert_close(own_state["state"], state["state"], rtol=0, atol=0)


def test_a_step_is_unprofiled_and_keeps_gradients_enabled():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = uncompiled_class(torch.optim.SGD)([parameter], lr=0.5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        assert float(optimizer.step(closure).detach()) == 2.0
        assert torch.is_grad_enabled()
    assert parameter.tolist() == [0.0, 0.0] and parameter.is_leaf and parameter.requires_grad


def test_an_uncompiled_optimiser_is_a_cached_subclass_of_torchs():
    assert issubclass(uncompiled_class(torch.optim.Adam), torch.optim.Adam)
    assert uncompiled_class(torch.optim.Adam) is uncompiled_class(torch.optim.Adam)
    assert uncompiled_class(torch.optim.Adam).__name__ == "Adam"
