"""A client's stream of tasks: its progress, its learner, its measurements."""

from collections.abc import Mapping
from math import isnan, nan
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.clients.evaluation.fusion_effect import SPLITS, GuidanceEffect
from fedkd.clients.evaluation.task_tests import TaskMetric, TaskTests
from fedkd.clients.local.local_loss import LocalLoss
from fedkd.clients.local.task_batches import joined, of_task, some, task_batches
from fedkd.clients.local_samples import LocalSamples
from fedkd.clients.shared_network import Measured
from fedkd.continual import (
    Episode,
    LearnerContext,
    SharedMask,
    SupermaskLearner,
    TaskLearning,
    TaskModel,
    changes_training,
    fingerprint_weights,
    heads_are_disjoint,
    layer_sketches,
    predicts_by_weights,
    protected_layers,
)
from fedkd.data import FederatedStream
from fedkd.errors import UserError
from fedkd.fusion import RESIDUAL_SHARE_PREFIX, SKETCH_PREFIX, Arrays, Supermask
from fedkd.plan import Plan
from fedkd.scenario import TASK_INFERENCE_RATE, accuracy_name
from fedkd.storage import add_prefix, strip_prefix
from fedkd.training import FitResult, Training, TrainJob, arrays_to_tensors, prepare_inputs

LEARNER = "learner/"
TASKS_AFTER = "tasks_after"
TASKS_BEFORE = "tasks_before"
TASKS_BEFORE_ROUND = "tasks_before_round"
TAUGHT_AGAIN = "taught_again"


class TaskStream:
    """The learner of a client of a federated stream, and measurements on each task.

    A strategy sees one task at a time: its samples, transfer set and classes. A learner sees the tasks in the
    client's own order: its task is a place in that order, from 0. A repeated task is a new one for it.

    Attributes:
        learning: The client's network under the learner.
        measured: Measurements that clients with the same network share; None: the answers are its own.
        curves: Accuracy on the present task after each epoch of the last training, by split.
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        stream: FederatedStream,
        samples: LocalSamples,
        network: nn.Module,
        measured: Measured | None = None,
    ) -> None:
        scenario, learner, order = plan.scenario, plan.learner, samples.order
        assert learner is not None and scenario.continual is not None
        self._plan, self._index, self._continual = plan, index, scenario.continual
        self._samples, self._order = samples, order
        self._device = next(network.parameters()).device
        self._old_guidance: dict[int, int] = {}  # old task to the round of its last guidance
        masks = "masks" in plan.strategy.capabilities.needs
        self.curves: dict[str, list[float]] = {}
        context = LearnerContext(
            network,
            [stream[task].units for task in order],
            stream.outputs,
            self.tensors,
            seed=scenario.seed,
            client=index,
            batch_size=scenario.training.batch_size,
            common_tasks=order if masks else None,
        )
        self.learning = TaskLearning(learner, context, fast=scenario.training.fast)
        self.measured = measured if predicts_by_weights(learner) else None
        self.tests = TaskTests(scenario, index, stream, order, self.learning, self._on_device, self.measured)
        # Accuracies [protocols, splits, tasks]: just before this round's guidance, and when last measured.
        self._tasks_before: tuple[int, np.ndarray] = (0, self.tests.nothing())
        self._tasks_after = self.tests.nothing()
        self._begun_with: np.ndarray | None = None
        if masks:
            assert isinstance(self.learning.learner, SupermaskLearner)
            memory = self.learning.learner.memory(self.learning.context)
            self._begun_with = fingerprint_weights(memory.weights)

    def _on_device(self, array: np.ndarray) -> Tensor:
        return prepare_inputs(array, self._device)

    def tensors(self, place: int) -> tuple[Tensor, Tensor]:
        """Return the samples and labels for training on the task at a place in the client's order."""
        x, y = self._samples.trained_on(place)
        return self._on_device(x), self._on_device(y)

    @property
    def task(self) -> int:
        """The present task, by its index in the stream."""
        return self._order[max(self.learning.task, 0)]

    # The course of tasks ------------------------------------------------------------------------------

    def enter(self, round: int) -> bool:
        """Move on to the task of a round; return whether it is another one."""
        place = self._plan.schedule.place(self._index, round)
        if round == 0 or self.learning.task == place:
            return False
        self._samples.enter(place)
        self.learning.enter(place)
        return True

    def learned_by(self, round: int) -> tuple[int, ...]:
        """Return the client's finished tasks at the end of a round, in its order."""
        schedule = self._plan.schedule
        return self._order[: schedule.place(self._index, round) + schedule.ends(self._index, round)]

    def reopens(self, task: int, round: int) -> int | None:
        """Return the place of an old task with new guidance in a round, if any."""
        place = self.tests.place_of(task)
        if round <= self._old_guidance.get(task, 0) or place >= self.learning.task:
            return None
        self._old_guidance[task] = round
        return place

    # The learner --------------------------------------------------------------------------------------

    def sketch(self, bases: Arrays) -> dict[str, np.ndarray]:
        """Return each protected layer's sketch ``[n, width]`` of inputs, and the share of energy left.

        Inputs are the present task's, outside of `bases`: U ``[n, r]`` by layer, if any.
        """
        wanted = self._plan.scenario.fusion.orthogonal
        assert wanted is not None
        context = self.learning.context
        layers = protected_layers(context.layers, own_heads=heads_are_disjoint(context.units))
        x, _ = context.samples()
        found = layer_sketches(
            context, layers, x, self.learning.substitutes(), arrays_to_tensors(bases), wanted.width
        )
        sketches = {SKETCH_PREFIX + name: own.columns.float().numpy() for name, own in found.items()}
        return sketches | {
            RESIDUAL_SHARE_PREFIX + name: np.array(own.left, np.float32) for name, own in found.items()
        }

    def as_seen(self, network: nn.Module) -> nn.Module:
        return TaskModel(network, self.learning.model().units).eval()

    def supermask(self) -> Supermask | None:
        """Return the mask of the present task; None: the strategy does not exchange masks."""
        learner = self.learning.learner
        if self._begun_with is None or not isinstance(learner, SupermaskLearner):
            return None
        return SharedMask(learner, self.learning.context, self._begun_with)

    def fit(self, job: TrainJob, round: int, loss: LocalLoss) -> Training[FitResult]:
        """Run a round's job on private samples under the learner."""
        schedule, local_epochs = self._plan.schedule, self._plan.scenario.training.local_epochs
        self.curves = {}
        if changes_training(self.learning.learner):
            job = self._shaped(job, round, loss)
        return self.learning.fit(
            job,
            first_epoch=schedule.rounds_into_task(self._index, round) * local_epochs,
            task_epochs=schedule.rounds_of_task(self._index, round) * local_epochs,
            after_epoch=self._after_epoch if self._continual.evaluate_epochs else None,
        )

    def _shaped(self, job: TrainJob, round: int, loss: LocalLoss) -> TrainJob:
        """Return the job with the learner's loss, on samples of its tasks and its memory.

        A straggler trains on fewer samples of each task.
        """
        learner, context = self.learning.learner, self.learning.context
        tasks, replayed = learner.batch(context)
        if self._continual.online and set(tasks) - {context.task}:
            raise UserError(
                f"must be false, as '{learner.name}' trains on all samples so far again",
                key="continual.online",
            )
        held_out, stopping = None, self._plan.scenario.training.early_stopping
        if stopping is not None and tasks:
            held_out = joined([self._kept_apart(task) for task in tasks])
        parts = [self._of_round(task, round) for task in tasks]
        if replayed is not None:
            parts.append(replayed)
        kept = self._samples.straggle(round, [len(part.labels) for part in parts])
        if kept is not None:
            rows = [torch.from_numpy(own).to(context.device) for own in kept]
            parts = [some(part, own) for own, part in zip(rows, parts, strict=True)]
        patience = 0 if stopping is None else stopping.patience
        return task_batches(job, self.learning, joined(parts), held_out, patience, loss)

    def _kept_apart(self, place: int) -> Episode:
        x, y = self._samples.kept_apart(place)
        return of_task(place, self._on_device(x), self._on_device(y))

    def _of_round(self, place: int, round: int) -> Episode:
        whole = of_task(place, *self.tensors(place))
        if place != self.learning.task or not self._continual.online:
            return whole
        rows = self._samples.part(round, len(whole.labels))
        return some(whole, torch.from_numpy(rows).to(whole.labels.device))

    def _after_epoch(self) -> None:
        accuracies, _ = self.tests.accuracies(self._order[self.learning.task])
        row = accuracies[self.tests.main]
        for split, accuracy in zip(SPLITS, row.tolist(), strict=True):
            if not isnan(accuracy):  # there may be no local test sets
                self.curves.setdefault(split, []).append(accuracy)

    # Measurements -------------------------------------------------------------------------------------

    def measure_before(self, round: int, effect: GuidanceEffect) -> None:
        """Measure all tasks so far before guidance, for `spatial_forgetting`."""
        before, _ = self.tests.measure(self.tests.met())
        self._tasks_before = (round, before)
        effect.begin_at(dict(zip(SPLITS, self.tests.so_far(before), strict=True)))

    def task_metrics(self, round: int, effect: GuidanceEffect) -> dict[str, float]:
        """Return accuracies on all tasks so far and on the next one, and their drops; others: NaN.

        At round 0, before any training, all tasks of the client are measured.
        """
        met, number = self.tests.met(), len(self._samples.tasks)
        measured = self._order if round == 0 else self._order[: self.learning.task + 2]
        now, inferred = self.tests.measure(measured, round)
        main = self.tests.main
        round_before, before = self._tasks_before
        guided = round_before == round and round > 0
        found = {
            TaskMetric(accuracy_name(protocol), split, t).key: float(now[p, s, t])
            for p, protocol in enumerate(self.tests.protocols)
            for s, split in enumerate(SPLITS)
            for t in range(number)
        }
        found |= {
            TaskMetric(TASK_INFERENCE_RATE, split, t).key: float(inferred[s, t])
            for s, split in enumerate(SPLITS)
            for t in range(number)
        }
        for s, split in enumerate(SPLITS):
            for t in range(number):
                learned = before[main, s, t] if guided else now[main, s, t]
                earlier = t in met[:-1]
                known = self._tasks_after[main, s, t] if earlier else nan
                spatial = learned - now[main, s, t] if guided and earlier else nan
                found[TaskMetric("spatial_forgetting", split, t).key] = float(spatial)
                found[TaskMetric("temporal_forgetting", split, t).key] = float(known - learned)
        self._tasks_after = now
        if round > 0:
            for split, accuracy in zip(SPLITS, self.tests.so_far(now), strict=True):
                moments = effect.before_and_after(round, split, accuracy)
                found |= {f"{name}_{split}": value for name, value in moments.items()}
        return found

    def learner_report(self, round: int) -> dict[str, float]:
        """Return a task's final figures: bytes that the learner keeps, and its report."""
        if not self._plan.schedule.ends(self._index, round):
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

    # State --------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        round, before = self._tasks_before
        arrays = add_prefix(LEARNER, self.learning.state())
        arrays |= {TASKS_AFTER: self._tasks_after, TASKS_BEFORE: before}
        if self._old_guidance:
            arrays[TAUGHT_AGAIN] = np.array(sorted(self._old_guidance.items()), dtype=np.int64)
        return arrays | {TASKS_BEFORE_ROUND: np.array(round, dtype=np.int64)}

    def restore(self, arrays: Arrays) -> None:
        self._tasks_after = np.array(arrays[TASKS_AFTER])
        self._tasks_before = (int(arrays[TASKS_BEFORE_ROUND]), np.array(arrays[TASKS_BEFORE]))
        self._old_guidance = dict(arrays[TAUGHT_AGAIN].tolist()) if TAUGHT_AGAIN in arrays else {}
        self.learning.restore(strip_prefix(LEARNER, arrays))
        if self.learning.task >= 0:
            self._samples.enter(self.learning.task)
