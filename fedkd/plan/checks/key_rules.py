"""Table of keys that have an effect only with certain values of other keys."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedkd.data import PARTITIONS, REPLACEMENT_SCHEMES
from fedkd.fusion import FusionStrategy, Kind, distils_targets, overrides_hook
from fedkd.models import ESTIMATORS
from fedkd.plan.graph import PLACED, WITH_K
from fedkd.scenario import Scenario


@dataclass(frozen=True)
class Reader:
    """A key that has an effect in scenarios for which `reads` is true.

    `by` are the keys that it depends on; an error shows the first. `only` follows "it applies only to".
    """

    key: str
    by: tuple[str, ...]
    only: str
    reads: Callable[[Scenario, Any], bool]
    asks_strategy: bool = False


def _with(key: str, by: str, *values: str | None, only: str = "") -> Reader:
    """Return the row of a key that applies with some values of another."""
    return Reader(
        key, (by,), only or " or ".join(f"'{value}'" for value in values), lambda s, _: at(s, by) in values
    )


def _without(key: str, by: str, *values: str | None, only: str) -> Reader:
    """Return the row of a key that applies without some values of another."""
    return Reader(key, (by,), only, lambda s, _: at(s, by) not in values)


def _above_0(key: str, by: str, only: str) -> Reader:
    return Reader(key, (by,), only, lambda s, _: at(s, by) > 0)


def _of_tasks(key: str, by: str, *values: str, classes: bool = False) -> Reader:
    """Return the row of a stream's key; with `classes`, lists of classes replace it."""
    tasks = "continual.tasks"
    return Reader(
        f"{tasks}.{key}",
        (f"{tasks}.{by}", *([f"{tasks}.classes"] if classes else [])),
        " or ".join(f"'{value}'" for value in values) + " without lists of classes" * classes,
        lambda s, _: (
            at(s, f"{tasks}.{by}") in values and not (classes and at(s, f"{tasks}.classes") is not None)
        ),
    )


def _of_strategy(key: str, only: str, reads: Callable[[Scenario, FusionStrategy], bool], *by: str) -> Reader:
    return Reader(key, ("fusion.strategy", *by), only, reads, asks_strategy=True)


def _has_networks(scenario: Scenario) -> bool:
    return any(group.model not in ESTIMATORS for group in scenario.clients)


def _trains_in_batches(scenario: Scenario, _: Any) -> bool:
    return _has_networks(scenario) or (scenario.clock is not None and scenario.clock.work == "steps")


def _distils(scenario: Scenario, strategy: FusionStrategy) -> bool:
    return distils_targets(strategy) and scenario.fusion.distill_epochs > 0


def _copies_distil(scenario: Scenario, strategy: FusionStrategy) -> bool:
    mapped = scenario.measure is not None and scenario.measure.transferability is not None
    return mapped or _distils(scenario, strategy)


def _rehearses(scenario: Scenario, _: Any) -> bool:
    weight = scenario.fusion.kd_weight
    return getattr(scenario.training, "recipe", "") == "joint" if weight is None else weight > 0


def _sends(scenario: Scenario, strategy: FusionStrategy, is_meant: Callable[[Kind], bool]) -> bool:
    """Return whether clients send, or may send, arrays of a kind."""
    if overrides_hook(strategy, "kinds_of"):
        return True
    return strategy.capabilities.sends != "nothing" and any(
        is_meant(kind) for kind in strategy.capabilities.kinds.values()
    )


def _waits_for_slower(scenario: Scenario, _: Any) -> bool:
    assert scenario.continual is not None
    pace, population = scenario.continual.tasks.pace, scenario.population
    if pace == "lockstep":
        return population.late > 0 or population.breaks > 0
    return pace != "file"


def _paced_by_tasks(scenario: Scenario, _: Any) -> bool:
    assert scenario.continual is not None
    tasks = scenario.continual.tasks
    return tasks.pace != "file" and not (tasks.pace in ("groups", "uniform") and tasks.pace_range is not None)


def _reads_files(scenario: Scenario, _: Any) -> bool:
    data, continual = scenario.data, scenario.continual
    named = {data.dataset, data.transfer.source, *(continual.tasks.datasets if continual else ())}
    return bool(named - {"digits", "synthetic", "diabetes", "order", "topics", "holdout", "noise"})


SCHEME, DIRICHLET = "data.partition.scheme", ("dirichlet", "dirichlet-per-client", "quantity")
DRAWN = tuple(name for name in PARTITIONS.builtin if name not in ("file", "natural"))
DISTILLING = "strategies whose clients distil targets, with distill_epochs ≥ 1"
TABLE: tuple[Reader, ...] = (
    # [data]
    Reader("data.root", ("data.dataset",), "data sets in files", _reads_files),
    _with("data.partition.alpha", SCHEME, *DIRICHLET),
    _with("data.head", "data.task", "regression"),
    Reader(
        "data.partition.bins",
        ("data.task", SCHEME),
        "regression with 'dirichlet' or 'dirichlet-per-client'",
        lambda s, _: s.data.is_regression and at(s, SCHEME) in DIRICHLET[:2],
    ),
    _with("data.partition.shards_per_client", SCHEME, "shards"),
    _with("data.partition.samples_per_client", SCHEME, *DRAWN),
    _with("data.partition.replacement", SCHEME, *REPLACEMENT_SCHEMES),
    _with("data.partition.path", SCHEME, "file"),
    _without("data.partition.args", SCHEME, *PARTITIONS.builtin, only="a plug-in scheme"),
    _without("data.transfer.args", "data.transfer.source", "holdout", "noise", only="another data set"),
    _with("data.transfer.alpha", "data.transfer.source", "holdout"),
    _above_0("data.transfer.alpha", "data.transfer.size", "a transfer set"),
    _with("data.transfer.owners", "data.transfer.source", "holdout"),
    _above_0("data.transfer.owners", "data.transfer.size", "a transfer set"),
    _with(
        "data.test_size",
        "data.validation",
        None,
        only="runs without data.validation",
    ),
    # [training]
    _with("training.momentum", "training.optimizer", "sgd", "rmsprop"),
    _with("training.lr_decay", "training.schedule", "step", "exponential"),
    _with("training.lr_step_rounds", "training.schedule", "step"),
    _with("training.vmap_size", "training.executor", "vectorised", "auto"),
    _with("training.autocast", "engine.device", "auto", "cuda"),
    Reader(
        "training.held_out",
        ("training.early_stopping", "continual"),
        "runs without training.early_stopping, whose held-out samples serve both, and without [continual]",
        lambda s, _: s.training.early_stopping is None and s.continual is None,
    ),
    *(
        Reader(f"training.{key}", ("clients",), "networks", lambda s, _: _has_networks(s))
        for key in (
            *("optimizer", "optimizer_state", "lr", "weight_decay", "schedule", "clip_norm"),
            *("accumulate", "early_stopping", "autocast", "executor", "fast"),
        )
    ),
    *(
        Reader(f"training.{key}", ("clients", "clock.work"), "networks", _trains_in_batches)
        for key in ("batch_size", "local_epochs")
    ),
    # [fusion]
    _of_strategy(
        "fusion.distill_epochs", "strategies whose clients distil targets", lambda s, h: distils_targets(h)
    ),
    *(
        _of_strategy(
            f"fusion.{key}",
            DISTILLING,
            _copies_distil,
            "fusion.distill_epochs",
            "measure.transferability",
        )
        for key in ("distill_batch_size", "distill_lr")
    ),
    _of_strategy("fusion.ce_weight", DISTILLING, _distils, "fusion.distill_epochs"),
    Reader(
        "fusion.kd_weight_decay",
        ("fusion.kd_weight", "training.recipe", "fusion.strategy"),
        "local training with distillation (kd_weight > 0)",
        _rehearses,
    ),
    _of_strategy(
        "fusion.upload_dtype",
        "strategies whose clients send predictions or weights",
        lambda s, h: _sends(s, h, lambda kind: kind.is_prediction or kind is Kind.WEIGHTS),
    ),
    _of_strategy(
        "fusion.upload_top",
        "strategies whose clients send predictions of samples",
        lambda s, h: any(kind.is_logits_of_samples for kind in h.capabilities.kinds.values()),
    ),
    _of_strategy(
        "fusion.knowledge_cache.decay",
        "strategies without their own stale_decay",
        lambda s, h: h.capabilities.stale_decay is None,
        "fusion.stale_decay",
    ),
    _with("fusion.relations.temperature", "fusion.relations.kind", "trg"),
    _with("fusion.relations.distance", "fusion.relations.kind", "rkd"),
    _with("fusion.relations.angle", "fusion.relations.kind", "rkd"),
    # [faults], [population], [clock], [asynchronous], [topology]
    _above_0("faults.poison", "faults.poisoned", "poisoned clients"),
    _above_0("faults.straggler_work", "faults.stragglers", "slow clients"),
    _with("faults.timeout", "engine.kind", "ray", only="the Ray engine, which can interrupt a client"),
    _with("faults.retries", "faults.on_client_error", "retry"),
    Reader(
        "faults.min_replies",
        ("faults.on_client_error", "faults.on_bad_upload"),
        "on_client_error = 'skip' or on_bad_upload = 'drop'",
        lambda s, _: s.faults.on_client_error == "skip" or s.faults.on_bad_upload == "drop",
    ),
    _above_0("population.late_by", "population.late", "late clients"),
    _above_0("population.break_rounds", "population.breaks", "clients on a break"),
    _without(
        "clock.bandwidth_spread",
        "clock.bandwidth",
        None,
        only="a clock with a bandwidth",
    ),
    _of_strategy(
        "asynchronous.staleness",
        "strategies with uploads and without their own stale_decay",
        lambda s, h: h.capabilities.sends != "nothing" and h.capabilities.stale_decay is None,
        "fusion.stale_decay",
    ),
    _with("topology.k", "topology.graph", *WITH_K),
    _with("topology.order", "topology.graph", *PLACED),
    _with("topology.path", "topology.graph", "file"),
    _without("topology.relay", "topology.graph", "star", only="graphs without a server"),
    _without("topology.mixing", "topology.graph", "star", only="graphs without a server"),
    _of_strategy(
        "topology.mixing",
        "strategies that mix weights, such as 'gossip'",
        lambda s, h: h.capabilities.over_graph == "mixed",
        "topology.graph",
    ),
    # [continual]
    _of_tasks("classes", "kind", "split", "overlapping"),
    _of_tasks("first_classes", "kind", "split", classes=True),
    _of_tasks("classes_per_task", "kind", "split", "overlapping", classes=True),
    _of_tasks("stride", "kind", "overlapping", classes=True),
    _of_tasks("class_order", "kind", "split", "overlapping", classes=True),
    _of_tasks("class_seed", "class_order", "shuffled"),
    _of_tasks("blur", "kind", "split"),
    _of_tasks("permute_first", "kind", "permuted"),
    _of_tasks("max_angle", "kind", "rotated"),
    _of_tasks("datasets", "kind", "datasets"),
    _of_tasks("shape", "kind", "datasets"),
    _of_tasks("tasks_per_client", "order", "overlapping"),
    _of_tasks("visits", "order", "same", "shuffled", "overlapping"),
    _of_tasks("schedule", "order", "file"),
    _of_tasks("groups", "pace", "groups"),
    _of_tasks("pace_range", "pace", "groups", "uniform"),
    Reader(
        "continual.tasks.max_lag",
        ("continual.tasks.pace", "population"),
        "clients at different tasks (another pace, late clients or breaks)",
        _waits_for_slower,
    ),
    Reader(
        "continual.rounds_per_task",
        ("continual.tasks.pace", "continual.tasks.pace_range"),
        "a pace without pace_range and file",
        _paced_by_tasks,
    ),
    # [engine]
    *(
        _with(f"engine.{key}", "engine.kind", "ray")
        for key in ("actors", "cpus_per_actor", "gpus_per_actor", "address", "start_timeout")
    ),
)
"""Rules of all keys that have an effect only in some scenarios."""


def at(scenario: Scenario, key: str) -> Any:
    """Return the value at a dotted key; None if its table is absent."""
    value: Any = scenario
    for part in key.split("."):
        value = getattr(value, part, None)
    return value
