"""A client that learns a stream of tasks with a learner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan, nan
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.clients.faults import Poison
from fedkd.clients.guidance_effect import SPLITS, Split
from fedkd.clients.own_samples import OwnSamples
from fedkd.clients.task_metrics import TaskMetric
from fedkd.clients.torch_client import SharedModel, TorchClient
from fedkd.continual.learning import TaskLearning
from fedkd.continual.task_model import TaskModel
from fedkd.data.stream import FederatedStream
from fedkd.fusion.views import Arrays
from fedkd.namespaces import below, under
from fedkd.plan.plan import Plan
from fedkd.scenario.stream import accuracy_name, main_protocol, protocols
from fedkd.training.early_stopping import EarlyStopping
from fedkd.training.evaluate import Score, predict_in_batches
from fedkd.training.executor import Training
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.optimizer_state import of_model

LEARNER = "learner/"
TASKS_AFTER = "tasks_after"
TASKS_BEFORE = "tasks_before"
TASKS_BEFORE_ROUND = "tasks_before_round"


class StreamClient(TorchClient):
    """Trains a torch module on one task after another, on its own samples and on guidance.

    A strategy sees one ordinary problem at a time: the present task's samples, transfer set and classes.

    Args:
        plan: What to simulate.
        index: Client index, 0-based.
        stream: All tasks of the federation.
        model: The client's own network, on its device; or the one that the clients of a process share.
        poison: What makes the client a poisoned one; None: nothing does.
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        stream: FederatedStream,
        model: nn.Module | SharedModel,
        poison: Poison | None = None,
    ) -> None:
        scenario, continual = plan.scenario, plan.scenario.continual
        assert plan.learner is not None and continual is not None
        self._tasks = stream.client(index)
        super().__init__(plan, index, self._tasks[0], model, poison)
        self._continual = continual
        self._stream = stream
        self._unit_class = np.array(stream.unit_class)
        self._protocols = protocols(scenario)
        self._main = main_protocol(scenario)
        self._asks_without_task = continual.evaluate_without_task
        self._curves: dict[str, list[float]] = {}
        # Accuracies [protocols, splits, tasks]: just before this round's guidance, and when last measured.
        self._tasks_before: tuple[int, np.ndarray] = (0, self._nothing_measured())
        self._tasks_after = self._nothing_measured()
        self.learning = TaskLearning(
            plan.learner,
            self.model,
            [task.units for task in stream],
            stream.outputs,
            self._samples,
            seed=scenario.seed,
            client=index,
            batch_size=scenario.training.batch_size,
        )

    def _samples(self, task: int) -> tuple[Tensor, Tensor]:
        """Return the samples and labels of a task that the client trains on."""
        data = self._tasks[task]
        own = self._own_samples_of(data, task)
        x, y = own.of(data.train_x, self._labels_of(data))
        return self._on_device(x), self._on_device(y)

    def _samples_kept_apart(self, task: int) -> tuple[Tensor, Tensor]:
        """Return those that it does not train on."""
        data = self._tasks[task]
        own = self._own_samples_of(data, task).kept_apart
        return self._on_device(data.train_x[own]), self._on_device(self._labels_of(data)[own])

    def _own_samples(self) -> OwnSamples:
        return self._own_samples_of(self.data, max(self.learning.task, 0))

    # A stream of tasks --------------------------------------------------------------------------------

    def enter(self, round: int) -> None:
        """Move on to the task of a round: the strategy forgets what it kept of the last one's knowledge."""
        task = self._plan.schedule.task(self.index, round)
        if task is None or round == 0 or self.learning.task == task:
            return
        self.data = self._tasks[task]
        if "weights" not in self._strategy.needs:
            self._kept = {}
            self.memory.clear()
        # A learner's own tensors of a task, such as its scores, are not those of the last one.
        self._optimizer_state = of_model(self._optimizer_state)
        self.learning.enter(task)

    def end_task(self) -> None:
        """End the task under way."""
        self.learning.end()

    # Training -----------------------------------------------------------------------------------------

    def _private_training(self, job: TrainJob, round: int) -> Training[FitResult]:
        continual, local_epochs = self._continual, self._scenario.training.local_epochs
        self._curves = {}
        tasks = self.learning.learner.training_tasks(self.learning.context)
        if tuple(tasks) != (self.learning.task,):
            job = self._of_tasks(job, tasks)
        return self.learning.fit(
            job,
            first_epoch=self._plan.schedule.rounds_into_task(self.index, round) * local_epochs,
            task_epochs=continual.rounds_per_task * local_epochs,
            after_epoch=self._after_epoch if continual.evaluate_epochs else None,
        )

    def _of_tasks(self, job: TrainJob, tasks: Sequence[int]) -> TrainJob:
        """Return the job on the samples of several tasks at once."""
        context, wanted = self.learning.context, self._scenario.training.early_stopping

        def loss(model: TaskModel, inputs: Tensor, labels: Tensor, of_task: Tensor) -> Tensor:
            return context.cross_entropy(model.outputs(inputs), labels, of_task)

        stopping = None
        if wanted is not None:
            held_out = _joined(tasks, [self._samples_kept_apart(task) for task in tasks])
            if len(held_out[0]):
                stopping = EarlyStopping(
                    held_out, context.cross_entropy, wanted.patience, outputs=TaskModel.outputs
                )
        arrays = _joined(tasks, [self._samples(task) for task in tasks])
        return replace(job, arrays=arrays, loss=loss, early_stopping=stopping)

    def _guidance_training(self, job: TrainJob) -> Training[FitResult]:
        return self.learning.distil(job)

    def _after_epoch(self) -> None:
        accuracies = self._accuracies(self.learning.task)
        row = accuracies[self._protocols.index(self._main)]
        for split, accuracy in zip(SPLITS, row.tolist(), strict=True):
            if not isnan(accuracy):  # there may be no local test sets
                self._curves.setdefault(split, []).append(accuracy)

    def learning_curves(self) -> dict[str, list[float]]:
        """Return the accuracy on the present task after each epoch of the last training, by split."""
        return self._curves

    # Evaluation ---------------------------------------------------------------------------------------

    def _predictor(self) -> nn.Module:
        return self.learning.model()

    def evaluate_fused(self, split: Split, round: int) -> Score:
        """Evaluate on the present task."""
        return self.evaluate(split)

    def remember_trained(self, round: int, *, changes: bool = True) -> None:
        """Evaluate on earlier tasks too: what guidance does to them is `spatial_forgetting`.

        Both accuracies are those of all tasks so far, as the one that is measured afterwards is.
        """
        super().remember_trained(round, changes=changes)
        if changes:
            before = self._measure(range(self.learning.task + 1))
            self._tasks_before = (round, before)
            self.effect.begin_at(dict(zip(SPLITS, self._so_far(before), strict=True)))

    def task_metrics(self, round: int) -> dict[str, float]:
        """Return accuracies on all tasks met so far and on the next one, and where they have dropped.

        At round 0, before any training, all tasks are measured. What is not measured is NaN.
        """
        task = self.learning.task
        measured = range(len(self._tasks)) if round == 0 else range(min(task + 2, len(self._tasks)))
        now = self._measure(measured)
        found = {
            TaskMetric(accuracy_name(protocol), split, t).key: float(now[p, s, t])
            for p, protocol in enumerate(self._protocols)
            for s, split in enumerate(SPLITS)
            for t in range(len(self._tasks))
        }
        main = self._protocols.index(self._main)
        round_before, before = self._tasks_before
        guided = round_before == round and round > 0
        for s, split in enumerate(SPLITS):
            for t in range(len(self._tasks)):
                learned = before[main, s, t] if guided else now[main, s, t]
                known = self._tasks_after[main, s, t] if 0 <= t < task else nan
                spatial = learned - now[main, s, t] if guided and t < task else nan
                found[TaskMetric("spatial_forgetting", split, t).key] = float(spatial)
                found[TaskMetric("temporal_forgetting", split, t).key] = float(known - learned)
        self._tasks_after = now
        if round > 0:
            for split, accuracy in zip(SPLITS, self._so_far(now), strict=True):
                moments = self.effect.two_moments(round, split, accuracy)
                found |= {f"{name}_{split}": value for name, value in moments.items()}
        return found

    def _so_far(self, accuracies: np.ndarray) -> tuple[float, float]:
        """Return the means over all tasks so far in the main protocol, local and global."""
        main = accuracies[self._protocols.index(self._main), :, : self.learning.task + 1]
        local, common = (float(np.mean(of_split)) for of_split in main)
        return local, common

    def learner_report(self, round: int) -> dict[str, float]:
        """Return what the learner keeps of the tasks so far, in bytes, and what it says about the last."""
        if not self._plan.schedule.ends(self.index, round):
            return {}
        learning = self.learning
        costs = {
            "stored_bytes": float(learning.context.stored_bytes()),
            "peak_bytes": float(learning.peak_bytes),
        }
        told = learning.learner.report(learning.context)
        if not isinstance(told, Mapping) or not all(
            isinstance(name, str) and isinstance(value, Real) for name, value in told.items()
        ):
            kind = type(told).__name__
            raise TypeError(
                f"`report` of learner '{learning.learner.name}' returned a {kind}; must be a dict of numbers"
            )
        return costs | {name: float(value) for name, value in told.items()}

    def _nothing_measured(self) -> np.ndarray:
        return np.full((len(self._protocols), len(SPLITS), len(self._tasks)), nan)

    def _measure(self, tasks: range) -> np.ndarray:
        """Return accuracies [protocols, splits, T], NaN for tasks that are not measured."""
        measured = self._nothing_measured()
        for task in tasks:
            measured[:, :, task] = self._accuracies(task)
        return measured

    def _accuracies(self, task: int) -> np.ndarray:
        """Return accuracies [protocols, splits] on one task, with the task given and without."""
        model = self.learning.model(task)
        return np.array([self._shares(task, model, x, y) for x, y in self._tasks.tests(task)]).T

    def _shares(self, task: int, model: TaskModel, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """Return the shares of samples classified correctly with the task given and without."""
        if not len(y):
            return nan, nan
        info = self._stream[task]
        outputs = self._outputs(model, x)
        own = np.array(info.own_units)
        target = np.array(info.units)[y]
        given = own[outputs[:, own].argmax(axis=1)] == target
        if not self._asks_without_task:
            return float(given.mean()), nan
        open_outputs = self._outputs_without_task(outputs, model, x)
        guess = open_outputs[:, : self._stream.outputs].argmax(axis=1)
        unknown = self._unit_class[guess] == self._unit_class[target]
        return float(given.mean()), float(unknown.mean())

    def _outputs(self, model: TaskModel, x: np.ndarray) -> np.ndarray:
        return predict_in_batches(model, model.outputs, self._on_device(x)).cpu().numpy()

    def _outputs_without_task(self, given: np.ndarray, model: TaskModel, x: np.ndarray) -> np.ndarray:
        """Return all outputs for samples whose task is not known; those of `given` where it plays no part."""
        learner = self.learning.learner
        if not learner.tells_tasks_apart:
            return given
        present = self.learning.model()
        context = self.learning.context
        found = predict_in_batches(
            present, lambda batch: learner.outputs(context, present, batch), self._on_device(x)
        )
        return found.cpu().numpy()

    # State --------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that `restore` needs to continue exactly here."""
        arrays = under(LEARNER, self.learning.state())
        round, before = self._tasks_before
        arrays |= {TASKS_AFTER: self._tasks_after, TASKS_BEFORE: before}
        return super().state() | arrays | {TASKS_BEFORE_ROUND: np.array(round, dtype=np.int64)}

    def restore(self, arrays: Arrays) -> None:
        """Continue from a state that `state` returned."""
        super().restore(arrays)
        self._tasks_after = np.array(arrays[TASKS_AFTER])
        self._tasks_before = (int(arrays[TASKS_BEFORE_ROUND]), np.array(arrays[TASKS_BEFORE]))
        self.learning.restore(below(LEARNER, arrays))
        if self.learning.task >= 0:
            self.data = self._tasks[self.learning.task]


def _joined(tasks: Sequence[int], parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the samples and labels of several tasks in one, and the task of each."""
    x, y = zip(*parts, strict=True)
    of_task = [torch.full((len(own),), task, device=own.device) for task, own in zip(tasks, y, strict=True)]
    return torch.cat(x), torch.cat(y), torch.cat(of_task)
