"""Check that a run may continue under the scenario of its folder."""

from collections.abc import Mapping
from typing import Any

from fedkd.errors import UserError, refuse_if
from fedkd.plan.hyperparameters import bind_strategy
from fedkd.scenario import FAULT_HANDLING_KEYS, Scenario, changed_keys, result_relevant_keys

MAX_LISTED_CHANGES = 3  # changed keys in an error


def check_continuation(began: Mapping[str, Any], done: int, scenario: Scenario) -> None:
    """Refuse a scenario whose `done` rounds would differ from those of `began`."""
    changed = changed_keys(began, result_relevant_keys(scenario))
    for key in FAULT_HANDLING_KEYS:
        changed.pop(f"faults.{key}", None)
    before, now = changed.pop("rounds", (scenario.rounds, scenario.rounds))
    if changed:
        told = [f"{key} was {old!r} and is {new!r}" for key, (old, new) in changed.items()]
        more = [f"{len(told) - MAX_LISTED_CHANGES} more"] if len(told) > MAX_LISTED_CHANGES else []
        raise UserError(
            f"the run began with other values: {', '.join([*told[:MAX_LISTED_CHANGES], *more])};"
            " put them back, or start a run of its own"
        )
    refuse_if(now < before, f"the run began with {before} rounds and cannot have fewer, got {now}", "rounds")
    if now == before or done == 0:
        return
    if scenario.continual is not None:
        reason = "its tasks say how many rounds a stream takes"
    elif scenario.training.schedule == "cosine":
        reason = "its learning rates, by schedule 'cosine', were those of a run that ends there"
    elif bind_strategy(scenario)[0].capabilities.counts_rounds:
        reason = f"what '{scenario.fusion.strategy}' did in them was that of a run that ends there"
    elif scenario.population.breaks or scenario.population.leaving:
        reason = "when its clients are away was drawn for its rounds"
    elif done > before:
        reason = "it has ended with a training of its own (end_with = 'training')"
    else:
        return
    raise UserError(f"a run of {before} rounds cannot be made longer: {reason}", key="rounds")
