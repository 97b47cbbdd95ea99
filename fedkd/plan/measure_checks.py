"""Whether what a scenario wants measured can be, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedkd.errors import UserError
from fedkd.plan.plan import Plan

KEY = "measure.transferability"


def check_transferability(plan: Plan, models: Sequence[Any], transfer_size: int) -> None:
    """Refuse a map where clients have no networks of their own that could learn on the transfer set."""
    scenario = plan.scenario
    if scenario.measure is None or scenario.measure.transferability is None:
        return
    if plan.learner is not None:
        raise UserError("is for runs without a stream of tasks", key=KEY)
    for group, model in zip(scenario.clients, models, strict=True):
        if not isinstance(model, nn.Module):
            raise UserError(
                f"copies of clients learn by gradients, and model '{group.model}' is not a network", key=KEY
            )
    if any(wanted.at == "upload" for wanted in scenario.fusion.filters):
        raise UserError("is of whole predictions; have fusion.filters be applied at 'fusion'", key=KEY)
    if transfer_size == 0:
        raise UserError("needs transfer samples, and data.transfer.size is 0", key=KEY)
