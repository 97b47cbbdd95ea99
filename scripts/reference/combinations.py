"""The page of strategies and keys that do not go together, made of the table that checks read."""

from __future__ import annotations

from fedkd.plan.checks.capability_table import TABLE
from reference.markdown import code, page, prose, table


def combinations_page() -> str:
    """Return the page: a row for each capability of a strategy and each key that it rules out."""
    rows = [[code(row.key), row.capability, prose(_told(row.reason))] for row in TABLE]
    return page(
        "What goes with what",
        "A scenario that combines one of these is refused before anything runs, in one line.",
        table(("key", "strategy", "why not"), rows),
    )


def _told(reason: str) -> str:
    """Return a reason without what only a scenario fills in."""
    for place, words in (
        ("'{name}' ", "the strategy "),
        ("'{name}'", "the strategy"),
        ("{case.can.requires_sync}", "says so"),
        ("'{case.scenario.faults.poison}'", "the attack"),
        ("{case.learner.name}", "…"),
        ("{case.scenario.topology.graph}", "…"),
        ("{case.kd_weight:g}", "more"),
    ):
        reason = reason.replace(place, words)
    return reason
