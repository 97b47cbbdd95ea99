"""Check that a run may continue under the scenario of its folder."""

from collections.abc import Mapping
from typing import Any

from fedkd.errors import UserError, refuse_if
from fedkd.plan.hyperparameters import bind_strategy
from fedkd.scenario import FAULT_HANDLING_KEYS, Scenario, changed_keys, result_relevant_keys

MAX_LISTED_CHANGES = 3  # changed keys in an error


def check_continuation(began: Mapping[str, Any], done: int, scenario: Scenario) -> None:
    """Raise a `UserError` if the `done` rounds would differ under the new scenario."""
    changed = changed_keys(began, result_relevant_keys(scenario))
    for key in FAULT_HANDLING_KEYS:
        changed.pop(f"faults.{key}", None)
    before, now = changed.pop("rounds", (scenario.rounds, scenario.rounds))
    if changed:
        told = [f"{key} was {old!r} and is {new!r}" for key, (old, new) in changed.items()]
        more = [f"{len(told) - MAX_LISTED_CHANGES} more"] if len(told) > MAX_LISTED_CHANGES else []
        raise UserError(
            f"the run began with other values: {', '.join([*told[:MAX_LISTED_CHANGES], *more])};"
            " restore them, or start a new run"
        )
    refuse_if(now < before, f"the run began with {before} rounds and cannot have fewer, got {now}", "rounds")
    if now == before or done == 0:
        return
    if scenario.continual is not None:
        reason = "the number of rounds of a stream follows from its tasks"
    elif scenario.training.schedule == "cosine":
        reason = "the learning rates of schedule 'cosine' depend on the number of rounds"
    elif bind_strategy(scenario)[0].capabilities.counts_rounds:
        reason = f"the strategy '{scenario.fusion.strategy}' depends on the number of rounds"
    elif scenario.population.breaks or scenario.population.leaving:
        reason = "the absences of clients were drawn for this number of rounds"
    elif done > before:
        reason = "it has ended with a local training (end_with = 'training')"
    else:
        return
    raise UserError(f"a run of {before} rounds cannot be extended: {reason}", key="rounds")
