"""Table of keys that need classes, and are refused in regression."""

from collections.abc import Callable, Mapping

from fedkd.errors import UserError
from fedkd.scenario import Scenario

NEEDS_CLASSES: Mapping[str, tuple[Callable[[Scenario], bool], str]] = {
    "continual": (lambda s: s.continual is not None, "streams of tasks split classes"),
    "heterogeneity.label_noise": (
        lambda s: s.heterogeneity.label_noise > 0,
        "wrong labels are other classes",
    ),
    "data.partition.scheme": (
        lambda s: s.data.partition.scheme in ("shards", "circle"),
        "the scheme sorts classes; use 'iid', 'quantity', 'natural', 'file' or 'dirichlet'",
    ),
    "data.transfer.alpha": (lambda s: s.data.transfer.alpha is not None, "it draws a mix of classes"),
    "fusion.upload_top": (lambda s: s.fusion.upload_top is not None, "it chooses likely classes"),
    "fusion.filters": (lambda s: bool(s.fusion.filters), "they weigh class probabilities"),
    "fusion.relations": (lambda s: s.fusion.relations is not None, "they compare class probabilities"),
    "fusion.logit_adjustment": (lambda s: s.fusion.logit_adjustment != 0.0, "it shifts class scores"),
    "fusion.knowledge_cache": (
        lambda s: s.fusion.knowledge_cache is not None,
        "it fades class probabilities; use the strategy's stale_decay",
    ),
    "faults.poison": (
        lambda s: s.faults.poisoned > 0 and s.faults.poison != "random",
        "the attack forges classes; use 'random'",
    ),
    "measure.transferability": (
        lambda s: s.measure is not None and s.measure.transferability is not None,
        "it compares classes",
    ),
}
"""Tests whether a scenario sets a key, and why it needs classes."""


def check_regression(scenario: Scenario) -> None:
    """Raise a `UserError` for a key that needs classes in regression."""
    if not scenario.data.is_regression:
        return
    for key, (is_set, why) in NEEDS_CLASSES.items():
        if is_set(scenario):
            raise UserError(f"not allowed with data.task = 'regression': {why}", key=key)
