"""Cross-field validation: contradictory values of a scenario, and unknown names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedkd.data import DATASETS, PARTITIONS
from fedkd.errors import UserError, blaming, refuse_if
from fedkd.models import MODELS
from fedkd.plan.checks.courses import check_courses
from fedkd.plan.checks.regression import check_regression
from fedkd.scenario import PATH_DATASETS, Continual, Data, Scenario, TaskStream
from fedkd.training import METRICS

if TYPE_CHECKING:
    from fedkd.fusion import FusionStrategy

DRAWN_TRANSFERS = ("holdout", "noise")  # transfer sources that are not other data sets


def check_scenario(scenario: Scenario) -> None:
    """Raise a `UserError` for contradictory fields, at the key that is easiest to change."""
    clients, groups = scenario.data.clients, len(scenario.clients)
    for key in ("clients_per_round", "evaluate_clients"):
        number = getattr(scenario, key) or 0
        refuse_if(number > clients, f"must be ≤ data.clients ({clients}), got {number}", key)
    told = f"must be at most {clients} tables [[clients]], as data.clients is {clients},"
    refuse_if(groups > clients, f"{told} got {groups}", "clients")
    _check_data(scenario.data)
    check_regression(scenario)
    told = "must be 'fusion' in a stream of tasks, got 'training'"
    refuse_if(scenario.end_with == "training" and scenario.continual is not None, told, "end_with")
    training, replies = scenario.training, scenario.faults.min_replies
    refuse_if(
        training.lr_step_rounds is None and training.schedule == "step",
        "missing; schedule 'step' needs the rounds between two drops, e.g. lr_step_rounds = 10",
        "training.lr_step_rounds",
    )
    most = scenario.clients_per_round or scenario.data.clients
    told = f"must be ≤ {most}, the number of clients in a round, got {replies}"
    refuse_if(replies > most, told, "faults.min_replies")
    if scenario.measure is not None and scenario.measure.transferability is not None:
        rounds, key = scenario.measure.transferability.rounds, "measure.transferability.rounds"
        refuse_if(rounds != sorted(set(rounds)), f"must be ascending without repeats, got {rounds}", key)
        told = f"must begin with one of the run's {scenario.rounds} rounds, got {rounds}"
        refuse_if(scenario.continual is None and rounds[0] > scenario.rounds, told, key)
    whole = scenario.continual is not None or scenario.asynchronous is not None
    told = "must be 'full' in a stream of tasks and in asynchronous rounds"
    refuse_if(whole and isinstance(scenario.evaluate, int), f"{told}, got {scenario.evaluate}", "evaluate")
    told = f"must be ['accuracy'] in a stream of tasks, got {scenario.metrics}"
    refuse_if(scenario.continual is not None and scenario.metric_names, told, "metrics")
    if scenario.continual is not None:
        _check_stream(scenario.continual.tasks)
        _check_stream_data(scenario.continual.tasks, scenario.data)
        _check_online(scenario.continual)
    check_courses(scenario)


def check_names(scenario: Scenario) -> None:
    """Raise a `UserError` for unknown names of data sets, partition schemes, models and metrics."""
    data = scenario.data
    named = [
        (PARTITIONS, "data.partition.scheme", data.partition.scheme),
        (DATASETS, "data.dataset", data.dataset),
    ]
    if data.transfer.source not in DRAWN_TRANSFERS:
        named.append((DATASETS, "data.transfer.source", data.transfer.source))
    named += [(MODELS, f"clients.{index}.model", group.model) for index, group in enumerate(scenario.clients)]
    named += [(METRICS, f"metrics.{index}", name) for index, name in enumerate(scenario.metrics)]
    for registry, key, name in named:
        with blaming(key=key):
            registry.check(name)


def _check_stream(tasks: TaskStream) -> None:
    key, kind = "continual.tasks", tasks.kind
    told = f"must be channels, height and width, got {tasks.shape}"
    refuse_if(tasks.shape is not None and len(tasks.shape) != 3, told, f"{key}.shape")
    too_many = kind == "datasets" and tasks.datasets and (tasks.count or 0) > len(tasks.datasets)
    told = f"must be ≤ {len(tasks.datasets)}, the number of data sets, got {tasks.count}"
    refuse_if(too_many, told, f"{key}.count")
    told = "needs further tasks: count must be ≥ 2"
    refuse_if(tasks.first_classes is not None and tasks.count == 1, told, f"{key}.first_classes")
    if tasks.classes is not None:
        _check_class_lists(tasks, tasks.classes)
        return
    width = tasks.classes_per_task or 4
    refuse_if(
        kind == "overlapping" and (tasks.stride or width // 2) >= width,
        f"must be < {width}, the number of classes of a task, so that tasks overlap, got {tasks.stride}"
        if width > 1
        else "a window of one class overlaps with no other; use kind = 'split'",
        f"{key}.stride",
    )


def _check_class_lists(tasks: TaskStream, lists: Sequence[Sequence[int]]) -> None:
    told = f"must be {len(lists)}, the number of lists of classes, or left out, got {tasks.count}"
    refuse_if(tasks.count not in (None, len(lists)), told, "continual.tasks.count")
    task_of: dict[int, int] = {}
    shared = False
    for task, own in enumerate(lists):
        for place, label in enumerate(own):
            key = f"continual.tasks.classes.{task}.{place}"
            refuse_if(label in own[:place], f"class {label} occurs twice", key)
            refuse_if(
                label in task_of and tasks.kind == "split",
                f"class {label} is also in task {task_of.get(label)}; only kind = 'overlapping' allows it",
                key,
            )
            shared |= label in task_of
            task_of.setdefault(label, task)
    told = "no class is in two tasks; use kind = 'split'"
    refuse_if(tasks.kind == "overlapping" and not shared, told, "continual.tasks.classes")


def _check_online(continual: Continual) -> None:
    tasks = continual.tasks
    told = f"needs head = 'class', as a sample may come with any task, got '{continual.head}'"
    refuse_if(tasks.blur and continual.head != "class", told, "continual.tasks.blur")
    refuse_if(
        tasks.blur and (tasks.order not in ("same", "shuffled") or tasks.count == 1),
        "needs clients that learn all of several tasks: order 'same' or 'shuffled'",
        "continual.tasks.blur",
    )
    told = "must be true with head 'task', which has separate outputs per task"
    refuse_if(not tasks.boundaries and continual.head == "task", told, "continual.tasks.boundaries")


def _check_stream_data(tasks: TaskStream, data: Data) -> None:
    for index, name in enumerate(tasks.datasets):
        key = f"continual.tasks.datasets.{index}"
        with blaming(key=key):
            DATASETS.check(name)
        refuse_if(name in tasks.datasets[:index], f"'{name}' occurs twice; each data set is one task", key)
        told = f"'{name}' needs the path in data.args; set data.dataset = '{name}'"
        refuse_if(name in PATH_DATASETS and name != data.dataset, told, key)


def _check_data(data: Data) -> None:
    partition, key = data.partition, "data.partition"
    least, samples = partition.min_samples, partition.samples_per_client
    told = "missing; scheme 'file' needs a JSON file with a list of sample indices per client"
    refuse_if(partition.scheme == "file" and partition.path is None, told, f"{key}.path")
    told = "with replacement clients train on samples that others hold out; set data.partition.replacement"
    shared = partition.replacement and data.validation is not None
    refuse_if(shared, f"{told} = false", "data.validation")
    told = "missing; a draw with replacement needs the samples per client"
    refuse_if(partition.replacement and samples is None, told, f"{key}.samples_per_client")
    told = f"must be ≥ data.partition.min_samples ({least}), got {samples}"
    refuse_if(samples is not None and samples < least, told, f"{key}.samples_per_client")
    transfer = data.transfer
    named = ((data.dataset, data.args, "data.args"), (transfer.source, transfer.args, "data.transfer.args"))
    for name, args, key in named:
        told = f"missing; data set '{name}' needs the path of its files, e.g. args = {{ path = \"…\" }}"
        refuse_if(name in PATH_DATASETS and not isinstance(args.get("path"), str), told, f"{key}.path")


def check_transfer_size(scenario: Scenario, strategy: FusionStrategy) -> None:
    """Raise a `UserError` if the strategy lacks the transfer samples that it needs."""
    if scenario.data.transfer.size > 0 or not strategy.capabilities.uses_transfer_set:
        return
    from fedkd.fusion import STRATEGIES, capabilities_of, load_strategy_class

    found = {name: capabilities_of(load_strategy_class(name)) for name in STRATEGIES.builtin}
    without = [name for name, can in found.items() if not can.uses_transfer_set]
    raise UserError(
        f"must be ≥ 1 for strategy '{scenario.fusion.strategy}'; only {', '.join(without)} and Flower's"
        " strategies need no transfer samples",
        key="data.transfer.size",
    )


def has_one_architecture(scenario: Scenario) -> bool:
    """Return whether all clients have the same model."""
    first, *others = scenario.clients
    return all(group.architecture == first.architecture for group in others)


def check_one_architecture(scenario: Scenario, what: str = "averages parameters") -> None:
    """Raise a `UserError` for several architectures; `what` is what the strategy does."""
    first, *others = scenario.clients
    for index, group in enumerate(others, start=1):
        other = " with other args" if group.args != first.args else " with other adapters"
        refuse_if(
            group.architecture != first.architecture,
            f"'{scenario.fusion.strategy}' {what}, so all clients need one architecture, got"
            f" '{first.model}' and '{group.model}'{other * (group.model == first.model)}"
            f" (clients.{index})",
            "clients",
        )


def check_adapters(scenario: Scenario) -> None:
    """Raise a `UserError` unless all clients adapt the same layers of one base."""
    name, (first, *_) = scenario.fusion.strategy, scenario.clients
    for index, group in enumerate(scenario.clients):
        told = f"missing; '{name}' combines adapters, e.g. adapter = {{ kind = \"lora\", rank = 4 }}"
        if group.adapter is None or first.adapter is None:
            raise UserError(told, key=f"clients.{index}.adapter")
        kinds = [g.adapter.model_dump(exclude={"rank", "alpha"}) for g in (first, group) if g.adapter]
        refuse_if(
            (group.model, group.args) != (first.model, first.args) or kinds[0] != kinds[1],
            f"'{name}' combines adapters of one base; clients may differ in rank and alpha alone",
            f"clients.{index}",
        )
