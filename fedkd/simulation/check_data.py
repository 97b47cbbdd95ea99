"""Data in ``fedkd check``: sizes, label skew, tasks of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedkd.errors import one_line
from fedkd.tracking import count_noun

if TYPE_CHECKING:
    from fedkd.data import Data, FederatedData, FederatedStream, Skew, Task
    from fedkd.scenario import Continual, Scenario

HEADS = {
    "task": "separate outputs for each task",
    "domain": "the same outputs for all tasks",
    "class": "one output per class, and all classes compete",
}
"""Heads of streams, in words."""
SHOWN_TASKS = 5  # tasks of a stream that are listed
SHOWN_CLASSES = 6
SHOWN_OWNERS = 8


def row(label: str, text: str) -> str:
    return f"{label:<11}{text}"


def data_rows(scenario: Scenario, data: FederatedData, held_out: float | None = None) -> Iterator[str]:
    shape = "×".join(map(str, data.input_shape))
    testing = f"{len(data.test_y):,} {_common_tests(scenario)}"
    labels = f"{data.classes} classes"
    if data.scale is not None:
        labels = f"{count_noun(len(data.scale.names), 'target')} ({data.scale.head} head)"
    yield row("data", f"{data.name}: {labels}, samples of {shape}{_kind(data)}, {testing}")
    yield row("partition", _partition(scenario))
    yield from _size_rows(scenario, [data], "client", held_out)
    if data.owners:
        more = f", … ({len(data.owners)} in all)" if len(data.owners) > SHOWN_OWNERS else ""
        yield row("", f"clients are {', '.join(map(one_line, data.owners[:SHOWN_OWNERS]))}{more}")
    told = f"label skew: {skew(data.label_distribution())}"
    if data.scale is not None:
        told = told.replace("label", "target").replace("classes", "quantile bins")
    yield row("", told)
    if data.skew:
        yield row("", f"clients differ by {_differences(data.skew)}")
    yield row(
        "transfer", f"{count_noun(len(data.transfer_x), 'sample')} from {scenario.data.transfer.source}"
    )


def stream_rows(scenario: Scenario, stream: FederatedStream) -> Iterator[str]:
    continual = scenario.continual
    assert continual is not None
    shape = "×".join(map(str, stream.input_shape))
    testing = _spread([len(task.data.test_y) for task in stream])
    yield row("data", f"{stream.name}: samples of {shape}{_kind(stream)}")
    yield row("stream", _course(scenario, continual))
    for task in stream[:SHOWN_TASKS]:
        yield row("", f"task {task.index}: {_task(task)}")
    if len(stream) > SHOWN_TASKS:
        yield row("", f"… and {len(stream) - SHOWN_TASKS} more")
    yield row("head", f"{continual.head}: {HEADS[str(continual.head)]}, {stream.outputs} in all")
    yield row("partition", _partition(scenario))
    tasks = [task.data for task in stream]
    yield from _size_rows(scenario, tasks, "client and task")
    yield row("", f"{_common_tests(scenario)} per task: {testing}")
    yield row("", f"label skew in task 0: {skew(tasks[0].label_distribution()[:, _own_labels(stream[0])])}")
    if tasks[0].skew:
        yield row("", f"clients differ by {_differences(tasks[0].skew)}")
    size = max(len(task.transfer_x) for task in tasks)
    yield row("transfer", f"{count_noun(size, 'sample')} from {scenario.data.transfer.source}, for each task")


def _common_tests(scenario: Scenario) -> str:
    if scenario.data.validation is None:
        return "common test samples"
    return "common validation samples, held out by the clients"


def _course(scenario: Scenario, continual: Continual) -> str:
    stream, epochs = continual.tasks, count_noun(scenario.training.local_epochs, "epoch")
    tasks = f"{count_noun(stream.count or 1, 'task')} ({stream.kind})"
    if stream.order != "same":
        tasks += f" in order '{stream.order}'"
    if stream.blur:
        tasks += f", {100 * stream.blur:g} % of each task from the classes of others"
    if continual.online:
        tasks += ", one pass over each sample"
    if stream.pace != "lockstep":
        return f"{tasks}, pace '{stream.pace}', rounds of {epochs}"
    return f"{tasks}, {count_noun(continual.rounds_per_task, 'round')} of {epochs} each"


def _task(task: Task) -> str:
    names = [task.data.class_names[label].removesuffix(f" ({task.name})") for label in _own_labels(task)]
    classes = count_noun(len(names), "class", "classes")
    if " ".join(names) == task.name:
        return f"{task.name} ({classes})"
    more = ", …" * (len(names) > SHOWN_CLASSES)
    return f"{task.name} ({classes}: {', '.join(names[:SHOWN_CLASSES])}{more})"


def _own_labels(task: Task) -> list[int]:
    """Return the labels that occur in a task; its outputs may cover other classes too."""
    label = {unit: place for place, unit in enumerate(task.units)}
    return [label[unit] for unit in task.own_units]


def _partition(scenario: Scenario) -> str:
    partition = scenario.data.partition
    drawn = partition.scheme in ("dirichlet", "dirichlet-per-client", "quantity")
    alpha = f", alpha = {partition.alpha:g}" if drawn else ""
    return f"{partition.scheme}{alpha}, {count_noun(scenario.data.clients, 'client')}"


def _kind(data: Data) -> str:
    return " integers" if data.input_dtype.kind == "i" else ""


def _size_rows(
    scenario: Scenario, tasks: Sequence[FederatedData], unit: str, held_out: float | None = None
) -> Iterator[str]:
    from fedkd.clients import count_held_out

    train = [stop - start for data in tasks for start, stop in data.train_bounds]
    test = [stop - start for data in tasks for start, stop in data.test_bounds]
    yield row("", f"training samples per {unit}: {_spread(train)}")
    if stopping := scenario.training.early_stopping:
        apart = [count_held_out(samples, stopping.validation) for samples in train]
        none = f"; {apart.count(0)} of {len(apart)} hold out none and train all epochs" * (0 in apart)
        yield row("", f"of these held out for early stopping: {_spread(apart)}{none}")
    elif held_out:
        apart = [count_held_out(samples, held_out) for samples in train]
        yield row("", f"of these held out for selection: {_spread(apart)}")
    kind = "local test samples" if scenario.data.validation is None else "samples held out for validation"
    yield row("", f"{kind} per {unit}: {_spread(test)}" if any(test) else "no local test sets")


def skew(shares: np.ndarray) -> str:
    """Describe the label skew of clients from their class shares `[N, C]`."""
    median = np.median((shares > 0).sum(axis=1))
    # exp(entropy): the number of equally frequent classes with the same entropy.
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    effective = np.median(np.exp(-(shares * logs).sum(axis=1)))
    seen = f"{median:g} of {shares.shape[1]} classes per client (median)"
    return f"{seen}, effective number of classes (median) {effective:.1f}"


def _differences(skews: Sequence[Skew]) -> str:
    columns = {
        "rotation {:+.0f}° to {:+.0f}°": [skew.angle for skew in skews],
        "noise {:.2f} to {:.2f}": [skew.noise for skew in skews],
        "colour ×{:.2f} to ×{:.2f}": [factor for skew in skews for factor in skew.colour],
        "wrong training labels {:.0%} to {:.0%}": [skew.label_noise for skew in skews],
    }
    return ", ".join(text.format(min(drawn), max(drawn)) for text, drawn in columns.items() if any(drawn))


def _spread(sizes: Sequence[int]) -> str:
    return f"min {min(sizes):,}, median {np.median(sizes):,.0f}, max {max(sizes):,}"
