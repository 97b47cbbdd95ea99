"""A stream of tasks, each a federation's data: groups of classes, changed pixels, or data sets.

Blurry streams are "Blurry-M" of Bang et al., "Rainbow Memory: Continual Learning with a Memory of Diverse
Samples", CVPR 2021, arXiv 2103.17230: M % of a task's samples have classes of other tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, overload

import numpy as np

from fedkd.data.federated import ClientData
from fedkd.data.kinds import SampleKind
from fedkd.data.request import ProgressCallback, silent
from fedkd.data.scenario_sources import Sources
from fedkd.data.streams.stream_parts import Part, changed_pixels, data_sets, grouped_classes
from fedkd.data.streams.stream_plan import Outputs, lay_out
from fedkd.data.streams.task import Task, Tests
from fedkd.plugins import import_plugins
from fedkd.randomness import numpy_generator
from fedkd.scenario import Scenario, resolve_head

KEPT = 2  # tasks whose samples a client caches: the present one and the next


@dataclass(frozen=True, eq=False)
class FederatedStream(Sequence[Task]):
    """All tasks of a federation, in the order in which every client learns them."""

    name: str  # name of the data set, or of all of them
    tasks: tuple[Task, ...]
    unit_class: tuple[int, ...]
    """Identity of the class of every output unit; units of one class in several tasks share it."""
    class_names: tuple[str, ...]  # class name of every output unit
    input_shape: tuple[int, ...]
    num_clients: int
    blur: float = 0.0
    """Share of every task's training samples that comes with other tasks (see `blurred`), drawn by `seed`."""
    seed: int = 0

    @property
    def outputs(self) -> int:
        """Number of output units of a model."""
        return len(self.unit_class)

    @property
    def kind(self) -> SampleKind:
        """Kind of the samples."""
        return max((task.data.kind for task in self.tasks), key=attrgetter("vocabulary"))

    @property
    def input_dtype(self) -> np.dtype:
        """Type of the samples: float32, or int64 of integers."""
        return self.tasks[0].data.input_dtype

    def client(self, n: int) -> ClientStream:
        """Return the data of client `n` in all tasks."""
        return ClientStream(self.tasks, n, self.blur, self.seed)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Task, ...]: ...
    def __getitem__(self, index: int | slice) -> Task | tuple[Task, ...]:
        return self.tasks[index]

    def __len__(self) -> int:
        return len(self.tasks)


class ClientStream(Sequence[ClientData]):
    """The data of one client in every task, made on demand; the last two tasks are cached."""

    def __init__(self, tasks: tuple[Task, ...], client: int, blur: float = 0.0, seed: int = 0) -> None:
        self._tasks = tasks
        self._client = client
        self._blur, self._seed = blur, seed
        self._kept: dict[int, ClientData] = {}

    @overload
    def __getitem__(self, index: int) -> ClientData: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ClientData, ...]: ...
    def __getitem__(self, index: int | slice) -> ClientData | tuple[ClientData, ...]:
        if isinstance(index, slice):
            return tuple(map(self._make, self._tasks[index]))
        task = self._tasks[index]
        data = self._kept.pop(task.index, None) or self._make(task)
        self._kept[task.index] = data
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return data

    def _make(self, task: Task) -> ClientData:
        if self._blur == 0.0:
            return task.client(self._client)
        every = [other.client(self._client) for other in self._tasks]
        return blurred(every, task.index, self._blur, seed=self._seed, client=self._client)

    def tests(self, task: int) -> Tests:
        """Return the client's test samples of a task, without its training samples."""
        return self._tasks[task].tests(self._client)

    def __len__(self) -> int:
        return len(self._tasks)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the cached samples."""
        return {**self.__dict__, "_kept": {}}


def load_stream(scenario: Scenario, progress: ProgressCallback | None = None) -> FederatedStream:
    """Load the data of every task and partition it among the clients.

    Each task has its own partition, test sets and held-out transfer set, of the sizes in `data`. Other
    transfer samples and a client's skew are the same in all tasks. A `permuted` or `rotated` stream is
    partitioned once: all tasks have the same samples, skewed before they are transformed. `overlapping` tasks
    share samples, which may change their client or become local test samples in the next task. Common test
    sets are never trained on. Missing, malformed or too few data raise a `UserError`.
    """
    if scenario.continual is None:
        raise ValueError("the scenario has no stream of tasks")
    import_plugins(scenario.plugins, scenario.plugin_path)
    sources, tasks = Sources(scenario, progress or silent), scenario.continual.tasks
    if tasks.kind == "datasets":
        parts = list(data_sets(tasks, sources))
    else:
        dataset = sources.dataset(scenario.data.dataset, scenario.data.args)
        make = grouped_classes if tasks.kind in ("split", "overlapping") else changed_pixels
        parts = list(make(tasks, dataset, sources))
    head = resolve_head(scenario.continual)
    outputs = lay_out(head, [part.classes for part in parts])
    # A digit under two permutations is two classes, unless both share a unit.
    told_apart = head != "domain" and tasks.kind not in ("split", "overlapping")
    names = _unit_names(outputs, parts, told_apart)
    return FederatedStream(
        name="+".join(dict.fromkeys(part.data.name for part in parts)),
        tasks=tuple(_task(index, part, outputs, names) for index, part in enumerate(parts)),
        unit_class=outputs.unit_class,
        class_names=names,
        input_shape=parts[0].data.input_shape,
        num_clients=scenario.data.clients,
        blur=tasks.blur,
        seed=scenario.seed,
    )


def _task(index: int, part: Part, outputs: Outputs, unit_names: tuple[str, ...]) -> Task:
    units, own_units, data = outputs.units[index], outputs.own_units[index], part.data
    if units != own_units:
        unit = np.array(own_units)
        data = replace(
            data,
            class_names=tuple(unit_names[u] for u in units),
            y=unit[data.y],
            test_y=unit[data.test_y],
            transfer_y=None if data.transfer_y is None else unit[data.transfer_y],
        )
    return Task(index, part.name, units, own_units, data, part.transform)


def _unit_names(outputs: Outputs, parts: Sequence[Part], told_apart: bool) -> tuple[str, ...]:
    """Name every output unit by its classes: "0/2/4" for a shared unit."""
    names: list[dict[str, None]] = [{} for _ in outputs.unit_class]
    for part, own in zip(parts, outputs.own_units, strict=True):
        for unit, name in zip(own, part.data.class_names, strict=True):
            names[unit][f"{name} ({part.name})" if told_apart else name] = None
    return tuple("/".join(of_unit) for of_unit in names)


def blurred(tasks: Sequence[ClientData], task: int, share: float, *, seed: int, client: int) -> ClientData:
    """Return a client's task with some training samples exchanged with all other tasks.

    Every training sample is in one task. Test samples and the transfer set stay as they are. `tasks` are all
    T tasks of the client, with labels of the same meaning; `share` of each one's training samples moves.
    """
    x, y = [], []
    for j, data in enumerate(tasks):
        order = numpy_generator(seed, "blur", client=client, task=j).permutation(len(data.train_y))
        leaving = int(share * len(order) + 0.5)
        # The first part of the moved samples goes to the next task, the second to the one after, and so on.
        parts = [order[leaving:], *np.array_split(order[:leaving], len(tasks) - 1)]
        rows = np.sort(parts[(task - j) % len(tasks)])
        x.append(data.train_x[rows])
        y.append(data.train_y[rows])
    return replace(tasks[task], train_x=np.concatenate(x), train_y=np.concatenate(y))
