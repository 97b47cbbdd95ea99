"""What no single field can know: values of a scenario that contradict each other, names nobody has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedkd.data.registry import DATASETS, PARTITIONS
from fedkd.errors import UserError
from fedkd.models.registry import MODELS
from fedkd.plan.course_checks import check_courses
from fedkd.scenario.load import PATH_DATASETS
from fedkd.scenario.schema import Continual, Data, Scenario, TaskStream, Training

if TYPE_CHECKING:
    from fedkd.fusion.strategy import FusionStrategy

DRAWN_TRANSFERS = ("holdout", "noise")
"""Transfer sources that are no other data set."""


def check_scenario(scenario: Scenario) -> None:
    """Refuse fields of a scenario that contradict each other, at the key that is the easiest to change."""
    _check_clients(scenario)
    _check_partition(scenario.data)
    _check_data_sets(scenario.data)
    if scenario.finish == "trained" and scenario.continual is not None:
        raise UserError(
            "'trained' is for runs without a stream: the last task is over with its last round", key="finish"
        )
    _check_training(scenario.training)
    _check_faults(scenario)
    _check_measured(scenario)
    if scenario.continual is not None:
        _check_stream(scenario.continual.tasks)
        _check_stream_data(scenario.continual.tasks, scenario.data)
        _check_online(scenario, scenario.continual)
    check_courses(scenario)


def _check_faults(scenario: Scenario) -> None:
    faults = scenario.faults
    most = scenario.clients_per_round or scenario.data.clients
    if faults.min_replies > most:
        raise UserError(
            f"at most the {most} clients of a round can reply, got {faults.min_replies}",
            key="faults.min_replies",
        )


def _check_measured(scenario: Scenario) -> None:
    wanted = None if scenario.measure is None else scenario.measure.transferability
    if wanted is None:
        return
    key = "measure.transferability.rounds"
    if wanted.rounds != sorted(set(wanted.rounds)):
        raise UserError(f"must ascend without repeats, got {wanted.rounds}", key=key)
    if scenario.continual is None and wanted.rounds[0] > scenario.rounds:
        raise UserError(
            f"at least the first must be one of the run's {scenario.rounds} rounds, got {wanted.rounds}",
            key=key,
        )


def check_names(scenario: Scenario) -> None:
    """Check that the data sets, the partition scheme and the models that a scenario names exist."""
    scheme = scenario.data.partition.scheme
    named = [
        (PARTITIONS, "data.partition.scheme", scheme),
        (DATASETS, "data.dataset", scenario.data.dataset),
    ]
    if scenario.data.transfer.source not in DRAWN_TRANSFERS:
        named.append((DATASETS, "data.transfer.source", scenario.data.transfer.source))
    named += [(MODELS, f"clients.{index}.model", group.model) for index, group in enumerate(scenario.clients)]
    for registry, key, name in named:
        try:
            registry.check(name)
        except UserError as error:
            raise error.at(key=key) from None


def _check_data_sets(data: Data) -> None:
    transfer = data.transfer
    named = ((data.dataset, data.args, "data.args"), (transfer.source, transfer.args, "data.transfer.args"))
    for name, args, key in named:
        if name in PATH_DATASETS and not isinstance(args.get("path"), str):
            raise UserError(
                f"data set '{name}' needs the path of its files, e.g. args = {{ path = \"…\" }}",
                key=f"{key}.path",
            )


def _check_training(training: Training) -> None:
    if training.lr_step_rounds is None and training.schedule == "step":
        raise UserError(
            "schedule 'step' needs the rounds between two drops, e.g. lr_step_rounds = 10",
            key="training.lr_step_rounds",
        )


def _check_stream(tasks: TaskStream) -> None:
    """Check the keys of a stream against each other; what depends on the data is checked with them."""
    if tasks.shape is not None and len(tasks.shape) != 3:
        raise UserError(f"must be channels, height and width, got {tasks.shape}", key="continual.tasks.shape")
    if tasks.kind == "datasets" and tasks.datasets and (tasks.count or 0) > len(tasks.datasets):
        raise UserError(
            f"must be ≤ {len(tasks.datasets)}, the data sets there are, got {tasks.count}",
            key="continual.tasks.count",
        )
    if tasks.first_classes is not None and tasks.count == 1:
        raise UserError("needs tasks after the first: count must be ≥ 2", key="continual.tasks.first_classes")
    if tasks.classes is not None:
        _check_class_lists(tasks, tasks.classes)
        return
    width = tasks.classes_per_task or 4
    if tasks.kind == "overlapping" and (tasks.stride or width // 2) >= width:
        raise UserError(
            f"must be < {width}, the classes of a task, or they do not overlap, got {tasks.stride}"
            if width > 1
            else "a window of one class overlaps with none; use kind = 'split'",
            key="continual.tasks.stride",
        )


def _check_class_lists(tasks: TaskStream, lists: Sequence[Sequence[int]]) -> None:
    """Check lists of classes against each other and against the number of tasks."""
    if tasks.count not in (None, len(lists)):
        raise UserError(
            f"must be {len(lists)}, the lists of continual.tasks.classes, or left out, got {tasks.count}",
            key="continual.tasks.count",
        )
    task_of: dict[int, int] = {}
    shared = False
    for task, own in enumerate(lists):
        for place, label in enumerate(own):
            key = f"continual.tasks.classes.{task}.{place}"
            if label in own[:place]:
                raise UserError(f"class {label} is there twice", key=key)
            if label in task_of and tasks.kind == "split":
                raise UserError(
                    f"class {label} is in task {task_of[label]} already; only kind = 'overlapping' allows it",
                    key=key,
                )
            shared |= label in task_of
            task_of.setdefault(label, task)
    if tasks.kind == "overlapping" and not shared:
        raise UserError(
            "no class is in two tasks, so they do not overlap; use kind = 'split'",
            key="continual.tasks.classes",
        )


def _check_online(scenario: Scenario, continual: Continual) -> None:
    """Check what a stream says of blurred tasks, of one pass, and of boundaries."""
    tasks = continual.tasks
    if tasks.blur and continual.head != "class":
        raise UserError(
            f"needs head 'class', as a sample may come with any task, got '{continual.head}'",
            key="continual.tasks.blur",
        )
    if tasks.blur and (tasks.order not in ("same", "shuffled") or tasks.count == 1):
        raise UserError(
            "needs clients that learn several tasks, and all of them: order 'same' or 'shuffled'",
            key="continual.tasks.blur",
        )
    if not tasks.boundaries and continual.head == "task":
        raise UserError(
            "must be true with head 'task', whose outputs tell where a task begins",
            key="continual.tasks.boundaries",
        )


def _check_stream_data(tasks: TaskStream, data: Data) -> None:
    for index, name in enumerate(tasks.datasets):
        key = f"continual.tasks.datasets.{index}"
        try:
            DATASETS.check(name)
        except UserError as error:
            raise error.at(key=key) from None
        if name in tasks.datasets[:index]:
            raise UserError(f"'{name}' is there twice; each data set is one task", key=key)
        if name in PATH_DATASETS and name != data.dataset:
            raise UserError(
                f"'{name}' is read from a path, which only data.args has: make it data.dataset", key=key
            )


def _check_clients(scenario: Scenario) -> None:
    clients, sampled, groups = scenario.data.clients, scenario.clients_per_round, len(scenario.clients)
    if sampled is not None and sampled > clients:
        raise UserError(f"must be ≤ data.clients ({clients}), got {sampled}", key="clients_per_round")
    evaluated = scenario.evaluate_clients
    if evaluated is not None and evaluated > clients:
        raise UserError(f"must be ≤ data.clients ({clients}), got {evaluated}", key="evaluate_clients")
    if groups > clients:
        raise UserError(
            f"must be at most {clients} tables [[clients]], one model for each of data.clients = {clients},"
            f" got {groups}",
            key="clients",
        )


def _check_partition(data: Data) -> None:
    partition = data.partition
    scheme, samples = partition.scheme, partition.samples_per_client
    if scheme == "file" and partition.path is None:
        raise UserError(
            "scheme 'file' needs the path of a JSON file with a list of sample indices per client",
            key="data.partition.path",
        )
    if partition.replacement and data.validation is not None:
        raise UserError(
            "clients that draw with replacement train on what others hold out; set data.partition.replacement"
            " = false",
            key="data.validation",
        )
    key = "data.partition.samples_per_client"
    if partition.replacement and samples is None:
        raise UserError("must say how many a client draws with replacement", key=key)
    if samples is not None and samples < partition.min_samples:
        raise UserError(
            f"must be ≥ data.partition.min_samples ({partition.min_samples}), got {samples}", key=key
        )


def check_transfer_size(scenario: Scenario, strategy: FusionStrategy) -> None:
    """Check that a strategy has transfer samples, if it needs any."""
    if scenario.data.transfer.size > 0 or not strategy.capabilities.uses_transfer_set:
        return
    from fedkd.fusion.capabilities import capabilities_of
    from fedkd.fusion.registry import STRATEGIES, load_strategy_class

    found = {name: capabilities_of(load_strategy_class(name)) for name in STRATEGIES.builtin}
    without = [name for name, can in found.items() if not can.uses_transfer_set]
    raise UserError(
        f"must be ≥ 1 for strategy '{scenario.fusion.strategy}'; only {', '.join(without)} and Flower's own"
        " strategies do without transfer samples",
        key="data.transfer.size",
    )


def has_one_architecture(scenario: Scenario) -> bool:
    """Return whether all clients have the same model."""
    first, *others = scenario.clients
    return all((group.model, group.args) == (first.model, first.args) for group in others)


def check_one_architecture(scenario: Scenario, what: str = "averages parameters") -> None:
    """Check that all clients have the same model."""
    first, *others = scenario.clients
    for index, group in enumerate(others, start=1):
        if (group.model, group.args) != (first.model, first.args):
            raise UserError(
                f"'{scenario.fusion.strategy}' {what}, so all clients need one architecture, got"
                f" '{first.model}' and '{group.model}'{' with other args' * (group.model == first.model)}"
                f" (clients.{index})",
                key="clients",
            )
