"""Draws the values of trials with Optuna, in batches.

A batch depends on the seed, its number, and the results of earlier batches in the order of their trials.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fedkd.randomness import derive_seed
from fedkd.tuning.schema import Search
from fedkd.tuning.space import Dimension
from fedkd.tuning.trials import Trial


def draw(search: Search, known: Sequence[Trial], number: int, batch: int) -> list[dict[str, Any]]:
    """Return the values of a 0-based batch's first trials; the `known` ones are of earlier batches."""
    import optuna

    space, spec = search.space, search.spec
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    own = derive_seed(search.seeds[0], "tune", round=batch + 1) % 2**32
    chosen: optuna.samplers.BaseSampler
    if spec.sampler == "random":
        chosen = optuna.samplers.RandomSampler(seed=own)
    else:
        chosen = optuna.samplers.TPESampler(seed=own, n_startup_trials=spec.startup, constant_liar=True)
    distributions = {found.key: _distribution(found) for found in space}
    study = optuna.create_study(direction="maximize", sampler=chosen)
    for trial in known:
        study.add_trial(_told(trial, space, distributions))

    def value(dimension: Dimension, drawn: Any) -> Any:
        return dimension.choices[drawn] if dimension.choices else dimension.rounded(drawn)

    batch_values = [study.ask(distributions).params for _ in range(number)]
    return [{found.key: value(found, values[found.key]) for found in space} for values in batch_values]


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found = dimension.range
    if found is None:  # by place: choices may be tables, which Optuna does not know
        return CategoricalDistribution(tuple(range(len(dimension.choices))))
    if dimension.whole:
        step = int(found.step) if found.step is not None else 1
        return IntDistribution(int(found.low), int(found.high), log=found.log, step=step)
    return FloatDistribution(float(found.low), float(found.high), log=found.log, step=found.step)


def _told(trial: Trial, space: Sequence[Dimension], distributions: Mapping[str, Any]) -> Any:
    from optuna.trial import TrialState, create_trial

    params = {found.key: trial.values[found.key] for found in space}
    for found in space:
        if found.choices:
            params[found.key] = list(map(repr, found.choices)).index(repr(params[found.key]))
    # Optuna ranks a trial that is pruned without any value last: so is one that diverged.
    done = trial.status == "done"
    return create_trial(
        state=TrialState.COMPLETE if done else TrialState.PRUNED,
        value=trial.value if done else None,
        params=params,
        distributions=dict(distributions),
        intermediate_values={} if trial.status == "diverged" else dict(trial.curve),
    )
