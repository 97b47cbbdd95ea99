"""Whether there are predictions that a scenario wants filtered, or sent in fewer numbers."""

from __future__ import annotations

from fedkd.errors import UserError
from fedkd.fusion.kinds import Kind
from fedkd.fusion.strategy import overrides, teaches_targets
from fedkd.plan.plan import Plan


def check_filters(plan: Plan, classes: int) -> None:
    """Refuse filters where no predictions become targets, and an `upload_top` above the number of classes."""
    fusion, strategy = plan.scenario.fusion, plan.strategy
    kinds = strategy.capabilities.kinds.values()
    if fusion.upload_top is not None and fusion.upload_top > classes:
        raise UserError(
            f"must be ≤ {classes}, the classes of a prediction, got {fusion.upload_top}",
            key="fusion.upload_top",
        )
    if not fusion.filters:
        return
    key = "fusion.filters"
    plain = not overrides(strategy, "targets_of") and teaches_targets(strategy)
    if not plain or Kind.TRANSFER_LOGITS not in kinds or Kind.WEIGHTS in kinds:
        raise UserError(
            f"not allowed with '{fusion.strategy}', which does not turn predictions on transfer samples into"
            " targets of them and nothing else",
            key=key,
        )
    for place, wanted in enumerate(fusion.filters):
        if wanted.by == "relevance" and not strategy.capabilities.mixes:
            raise UserError(
                f"'relevance' needs a strategy that mixes predictions for each client, such as 'knfu'; here"
                f" '{fusion.strategy}' does not",
                key=f"{key}.{place}.by",
            )
        if wanted.at == "upload" and fusion.bank is not None:
            raise UserError(
                "must be 'fusion' with fusion.bank, which keeps whole predictions",
                key=f"{key}.{place}.at",
            )
