"""Tests of a client on each task of its stream, with the task given and without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import nan
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedkd.clients.evaluation.fusion_effect import SPLITS
from fedkd.clients.shared_network import Measured
from fedkd.continual import TaskLearning, TaskModel, predicts_by_weights
from fedkd.data import FederatedStream
from fedkd.scenario import Scenario, evaluation_protocols, main_protocol
from fedkd.training import predict_in_batches

Asked = tuple[int, int, tuple[int, ...], tuple[int, ...]]
"""Index of a task in a client's order, and memory address of samples."""


class TaskMetric(NamedTuple):
    """One figure about one task: a row of `metrics.jsonl`, and the figure `key` of a reply."""

    metric: str
    split: str
    task: int

    @property
    def key(self) -> str:
        return f"{self.metric}/{self.split}/{self.task}"

    @staticmethod
    def from_key(key: str) -> TaskMetric:
        metric, split, task = key.rsplit("/", 2)
        return TaskMetric(metric, split, int(task))


def is_task_metric(key: str) -> bool:
    """Return whether a key of a reply names a figure about a task."""
    return key.count("/") >= 2


class TaskTests:
    """Test a learner's network on the test samples of tasks.

    The tasks of `learning` are places in the client's `order`. `measured` are measurements that clients of
    the process share; None: the answers are the client's own. `main` is the index of the scenario's protocol
    among the `evaluation_protocols`: with the task given, and perhaps without.
    """

    def __init__(
        self,
        scenario: Scenario,
        client: int,
        stream: FederatedStream,
        order: Sequence[int],
        learning: TaskLearning,
        on_device: Callable[[np.ndarray], Tensor],
        measured: Measured | None = None,
    ) -> None:
        assert scenario.continual is not None
        self.protocols = evaluation_protocols(scenario)
        self.main = self.protocols.index(main_protocol(scenario))
        self._asks_without_task = scenario.continual.evaluate_without_task
        self._stream, self._tasks = stream, stream.client(client)
        self._unit_class = np.array(stream.unit_class)
        self._order, self._learning = tuple(order), learning
        self._on_device = on_device
        self._measured = measured
        self._answered: dict[Asked, tuple[np.ndarray, np.ndarray]] | None = None

    @contextmanager
    def shared_predictions(self) -> Iterator[None]:
        """Predict equal samples of a task once in the block, with constant weights."""
        self._answered = {}
        try:
            yield
        finally:
            self._answered = None

    # The client's tasks -------------------------------------------------------------------------------

    def met(self) -> list[int]:
        """Return the tasks that were begun, each once, the present one last."""
        begun = self._order[: self._learning.task + 1]
        return list(dict.fromkeys(reversed(begun)))[::-1]

    def place_of(self, task: int) -> int:
        """Return the index in the client's order of a task's last or first start."""
        begun = self._order[: self._learning.task + 1]
        if task in begun:
            return len(begun) - 1 - begun[::-1].index(task)
        return self._order.index(task)

    # Accuracies ---------------------------------------------------------------------------------------

    def nothing(self) -> np.ndarray:
        """Return the accuracies [protocols, splits, T] of nothing measured, NaN."""
        return np.full((len(self.protocols), len(SPLITS), len(self._tasks)), nan)

    def measure(self, tasks: Sequence[int], fused: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return accuracies [protocols, splits, T] and rates of inference [splits, T], NaN: not measured.

        `fused` is the round whose fusion the weights come from; None: they are the client's own.
        """
        measured, inferred = self.nothing(), np.full((len(SPLITS), len(self._tasks)), nan)
        for task in dict.fromkeys(tasks):
            measured[:, :, task], inferred[:, task] = self.accuracies(task, fused)
        return measured, inferred

    def accuracies(self, task: int, fused: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return accuracies [protocols, splits] on a task, and rates of its inference [splits].

        The rates are NaN if the learner does not infer tasks or has not learned this one. Arguments as in
        `measure`.
        """
        model = self._learning.model(self.place_of(task))
        own, common = self._tasks.tests(task)

        def on_common() -> tuple[float, float, float]:
            return self._shares(task, model, *common)

        if self._measured is None or fused is None:
            of_common = on_common()
        else:
            of_common = self._measured.once(fused, ("shares", task), on_common)
        shares = np.array([self._shares(task, model, *own), of_common]).T
        return shares[:2], shares[2]

    def so_far(self, accuracies: np.ndarray) -> tuple[float, float]:
        """Return the means of `measure` over all tasks met in the main protocol, local and global."""
        local, common = (float(np.mean(of_split)) for of_split in accuracies[self.main][:, self.met()])
        return local, common

    def present(self, x: np.ndarray) -> np.ndarray:
        """Return a substitute for the logits `[n, C]` of the present task."""
        place = max(self._learning.task, 0)
        model = self._learning.model(place)
        outputs = self.outputs(place, model, x)
        return outputs if model.units is None else outputs[:, model.units.cpu().numpy()]

    def outputs(self, place: int, model: TaskModel, x: np.ndarray) -> np.ndarray:
        """Return all outputs `[n, O]` in an evaluation with the task given, by that task's model."""
        asked = place, x.__array_interface__["data"][0], x.shape, x.strides
        if self._answered is not None and asked in self._answered:
            return self._answered[asked][1]
        learner, context = self._learning.learner, self._learning.context
        found = predict_in_batches(model, lambda x: learner.predict(context, model, x), self._on_device(x))
        answers = found.cpu().numpy()
        if self._answered is not None:
            self._answered[asked] = x, answers  # holding the samples keeps their id from being reused
        return answers

    def _shares(
        self, task: int, model: TaskModel, x: np.ndarray, y: np.ndarray
    ) -> tuple[float, float, float]:
        """Return the shares of samples right with the task, right without, and inferred."""
        if not len(y):
            return nan, nan, nan
        info = self._stream[task]
        outputs = self.outputs(self.place_of(task), model, x)
        own = np.array(info.own_units)
        target = np.array(info.units)[y]
        given = own[outputs[:, own].argmax(axis=1)] == target
        if not self._asks_without_task:
            return float(given.mean()), nan, nan
        open_outputs, rate = self._without_task(task, outputs, x)
        guess = open_outputs[:, : self._stream.outputs].argmax(axis=1)
        unknown = self._unit_class[guess] == self._unit_class[target]
        return float(given.mean()), float(unknown.mean()), rate

    def _without_task(self, task: int, given: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, float]:
        """Return all outputs for samples whose task is not given, and the share of right inferences.

        If a learner's answers depend on the weights alone, they are those with the task `given`. Other
        learners predict again with the present task's model.
        """
        if predicts_by_weights(self._learning.learner):
            return given, nan
        present, right = self._learning.model(), list[Tensor]()
        places = [place for place, of_place in enumerate(self._order) if of_place == task]

        def outputs(batch: Tensor) -> Tensor:
            found, tasks = self._learning.predict_without_task(present, batch)
            if tasks is not None:
                right.append(tasks[:, places].any(dim=1))
            return found

        found = predict_in_batches(present, outputs, self._on_device(x)).cpu().numpy()
        known = right and self._learning.knows(self.place_of(task))
        return found, float(torch.cat(right).double().mean()) if known else nan
