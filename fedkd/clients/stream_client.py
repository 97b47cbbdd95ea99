"""A client that learns a stream of tasks with a learner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from math import isnan, nan
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.clients.faults import Poison
from fedkd.clients.guidance_effect import SPLITS, Split
from fedkd.clients.lesson import joined, lesson, of_task, some
from fedkd.clients.local_loss import LocalLoss
from fedkd.clients.own_samples import OwnSamples, part_of_round
from fedkd.clients.shared_network import Measured, SharedModel
from fedkd.clients.task_metrics import TaskMetric
from fedkd.clients.task_tests import TaskTests
from fedkd.clients.torch_client import TorchClient
from fedkd.clients.upload import leave
from fedkd.continual.episodes import Episode
from fedkd.continual.learning import TaskLearning
from fedkd.continual.shared_mask import SharedMask, fingerprint
from fedkd.continual.sketch import layer_sketches
from fedkd.continual.subspace import has_own_heads, protected_layers
from fedkd.continual.supermask import SupermaskLearner
from fedkd.continual.task_model import TaskModel
from fedkd.data.stream import FederatedStream
from fedkd.fusion.orthogonal import LEFT, SKETCH, kinds_of
from fedkd.fusion.views import Arrays, Supermask
from fedkd.namespaces import below, under
from fedkd.plan.plan import Plan
from fedkd.scenario.stream import TASK_INFERENCE_RATE, accuracy_name
from fedkd.training.evaluate import Score
from fedkd.training.executor import Training
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.optimizer_state import of_model
from fedkd.training.weights import tensors_of

LEARNER = "learner/"
TASKS_AFTER = "tasks_after"
TASKS_BEFORE = "tasks_before"
TASKS_BEFORE_ROUND = "tasks_before_round"
TAUGHT_AGAIN = "taught_again"


class StreamClient(TorchClient):
    """Trains a torch module on one task after another, on its own samples and on guidance.

    A strategy sees one ordinary problem at a time: the present task's samples, transfer set and classes.
    A learner sees the tasks in the client's own order, counted from 0: its task is a place in that order. One
    that comes back is a further task to it, and what it made of it last is what the client knows of it.

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
        self._order = plan.schedule.order(index)
        super().__init__(plan, index, self._tasks[self._order[0]], model, poison)
        self._continual = continual
        self._curves: dict[str, list[float]] = {}
        self._taught_again: dict[int, int] = {}  # old task to the round of its last guidance
        self.learning = TaskLearning(
            plan.learner,
            self.model,
            [stream[task].units for task in self._order],
            stream.outputs,
            self._samples,
            seed=scenario.seed,
            client=index,
            batch_size=scenario.training.batch_size,
            common_tasks=self._order if "masks" in plan.capabilities.needs else None,
        )
        alike: Measured | None = None
        if self._shared is not None and plan.learner.answers_by_weights:
            alike = self._shared.measured
        self._measured = alike
        self.tests = TaskTests(scenario, index, stream, self._order, self.learning, self._on_device, alike)
        # Accuracies [protocols, splits, tasks]: just before this round's guidance, and when last measured.
        self._tasks_before: tuple[int, np.ndarray] = (0, self.tests.nothing())
        self._tasks_after = self.tests.nothing()
        self._begun_with = self._fingerprint() if "masks" in plan.capabilities.needs else None

    def _fingerprint(self) -> np.ndarray:
        learner = self.learning.learner
        assert isinstance(learner, SupermaskLearner)
        return fingerprint(learner.memory(self.learning.context).weights)

    def _samples(self, place: int) -> tuple[Tensor, Tensor]:
        """Return the samples and labels that the client trains on of the task at a place in its order."""
        task = self._order[place]
        data = self._tasks[task]
        own = self._own_samples_of(data, task)
        x, y = own.of(data.train_x, self._labels_of(data))
        return self._on_device(x), self._on_device(y)

    def _samples_kept_apart(self, place: int) -> tuple[Tensor, Tensor]:
        """Return those that it does not train on."""
        task = self._order[place]
        data = self._tasks[task]
        own = self._own_samples_of(data, task).kept_apart
        return self._on_device(data.train_x[own]), self._on_device(self._labels_of(data)[own])

    def _own_samples(self) -> OwnSamples:
        return self._own_samples_of(self.data, self._order[max(self.learning.task, 0)])

    # A stream of tasks --------------------------------------------------------------------------------

    def enter(self, round: int) -> None:
        """Move on to the task of a round: the strategy forgets what it kept of the last one's knowledge."""
        place = self._plan.schedule.place(self.index, round)
        if round == 0 or self.learning.task == place:
            return
        self.data = self._tasks[self._order[place]]
        self._last_guidance = None
        if "weights" not in self._strategy.capabilities.needs:
            self._kept = {}
            self.memory.clear()
        # A learner's own tensors of a task, such as its scores, are not those of the last one.
        self._optimizer_state = of_model(self._optimizer_state)
        self.learning.enter(place)

    def end_task(self) -> None:
        """End the task under way."""
        self.learning.end()

    def sketch(self, round: int, bases: Arrays) -> dict[str, np.ndarray]:
        """Return sketches of what the present task's inputs of layers are outside of bases.

        Args:
            round: Of the message, for what happens to uploads on their way.
            bases: U ``[n, r]`` of every layer of which something is protected already, by name.

        Returns:
            For every layer that is to be protected a sketch ``[n, width]`` and the share of energy that is
            left, past all stages of an upload.
        """
        wanted = self._scenario.fusion.orthogonal
        assert wanted is not None
        context = self.learning.context
        layers = protected_layers(context.layers, own_heads=has_own_heads(context))
        found = layer_sketches(
            context,
            layers,
            context.samples()[0],
            self.learning.substitutes(),
            tensors_of(bases),
            wanted.width,
        )
        sketches = {SKETCH + name: own.columns.float().numpy() for name, own in found.items()}
        shares = {LEFT + name: np.array(own.left, dtype=np.float32) for name, own in found.items()}
        said = sketches | shares
        return leave(self._stages, said, kinds_of(said), lambda purpose: self._generator(purpose, round))

    def _as_seen(self, network: nn.Module) -> nn.Module:
        return TaskModel(network, self.learning.model().units).eval()

    def supermask(self) -> Supermask:
        """Return the mask of the present task."""
        learner = self.learning.learner
        if self._begun_with is None or not isinstance(learner, SupermaskLearner):
            return super().supermask()
        return SharedMask(learner, self.learning.context, self._begun_with)

    def _part(self, round: int, samples: int) -> np.ndarray:
        """Return which of the present task's samples a round of an online stream trains on."""
        schedule, place = self._plan.schedule, self.learning.task
        part, parts = schedule.rounds_into_task(self.index, round), schedule.rounds_of_task(self.index, round)
        seed = self._scenario.seed
        return part_of_round(samples, part, parts, seed=seed, client=self.index, task=place)

    def own_rows(self, round: int) -> np.ndarray:
        """Return which of the present task's samples a round is about: a part, if each has one round."""
        rows = super().own_rows(round)
        return rows[self._part(round, len(rows))] if self._continual.online else rows

    def learned_by(self, round: int) -> tuple[int, ...]:
        """Return the tasks that the client is through with at the end of a round, in its order."""
        schedule = self._plan.schedule
        return self._order[: schedule.place(self.index, round) + schedule.ends(self.index, round)]

    def learner_tells(self, tasks: Sequence[int]) -> dict[str, np.ndarray]:
        """Return what the learner has for a strategy that is made for it."""
        return self.learning.tell(tasks)

    def tell_learner(self, arrays: Arrays) -> None:
        """Hand the learner what it is to hear from such a strategy."""
        self.learning.hear(arrays)

    # Training -----------------------------------------------------------------------------------------

    def _private_training(self, job: TrainJob, round: int, loss: LocalLoss) -> Training[FitResult]:
        continual, local_epochs = self._continual, self._scenario.training.local_epochs
        self._curves = {}
        if self.learning.learner.shapes_training:
            job = self._lesson(job, round, loss)
        return self.learning.fit(
            job,
            first_epoch=self._plan.schedule.rounds_into_task(self.index, round) * local_epochs,
            task_epochs=self._plan.schedule.rounds_of_task(self.index, round) * local_epochs,
            after_epoch=self._after_epoch if continual.evaluate_epochs else None,
        )

    def _lesson(self, job: TrainJob, round: int, loss: LocalLoss) -> TrainJob:
        """Return the job with the learner's loss, on samples of the tasks it names and those it remembers.

        A straggler trains on less of each.
        """
        learner, context = self.learning.learner, self.learning.context
        tasks, rehearsed = learner.training_tasks(context), learner.rehearsed(context)
        held_out, stopping = None, self._scenario.training.early_stopping
        if stopping is not None and tasks:
            held_out = joined([of_task(task, *self._samples_kept_apart(task)) for task in tasks])
        parts = [self._of_round(task, round) for task in tasks]
        if rehearsed is not None:
            parts.append(rehearsed)
        kept = self._straggle(round, [len(part.labels) for part in parts])
        if kept is not None:
            rows = [torch.from_numpy(own).to(context.device) for own in kept]
            parts = [some(part, own) for own, part in zip(rows, parts, strict=True)]
        patience = 0 if stopping is None else stopping.patience
        return lesson(job, self.learning, joined(parts), held_out, patience, loss)

    def _of_round(self, task: int, round: int) -> Episode:
        """Return the samples of a task that a round trains on."""
        whole = of_task(task, *self._samples(task))
        if task != self.learning.task or not self._continual.online:
            return whole
        return some(whole, torch.from_numpy(self._part(round, len(whole.labels))).to(whole.labels.device))

    def _guidance_training(self, job: TrainJob) -> Training[FitResult]:
        return self.learning.distil(job)

    def learn_again(self, task: int, guidance: Arrays, round: int) -> Training[None]:
        """Distil guidance of an old task as that task, as far as the learner reopens it.

        No private samples come in, whatever `private_weight` says: those of old tasks are gone.
        """
        place = self.tests.place_of(task)
        if round <= self._taught_again.get(task, 0) or place >= self.learning.task:
            return
        self._taught_again[task] = round
        strategy, x = self._strategy, self._tasks[self._order[place]].transfer_x
        if "samples" in guidance:
            x = x[guidance["samples"]]
        if self._scenario.fusion.distill_epochs == 0 or len(x) == 0:
            return

        def loss(model: nn.Module, inputs: Tensor, wanted: Tensor) -> Tensor:
            return strategy.loss(model(inputs), wanted)

        arrays = [self._on_device(x), self._on_device(np.asarray(guidance["targets"], dtype=np.float32))]
        yield from self.learning.teach_again(self._distillation(arrays, loss, round, task), place)

    def _after_epoch(self) -> None:
        accuracies, _ = self.tests.accuracies(self._order[self.learning.task])
        row = accuracies[self.tests.main]
        for split, accuracy in zip(SPLITS, row.tolist(), strict=True):
            if not isnan(accuracy):  # there may be no local test sets
                self._curves.setdefault(split, []).append(accuracy)

    def learning_curves(self) -> dict[str, list[float]]:
        """Return the accuracy on the present task after each epoch of the last training, by split."""
        return self._curves

    def at_one_moment(self) -> AbstractContextManager[None]:
        """Predict the same samples as the same task but once while the block runs."""
        return self.tests.at_one_moment()

    # Evaluation ---------------------------------------------------------------------------------------

    def _predictor(self) -> nn.Module:
        return self.learning.model()

    def evaluate_fused(self, split: Split, round: int) -> Score:
        """Evaluate on the present task, its common test set once a process where all answer it alike."""
        if self._measured is None or split == "local":
            return self.evaluate(split)
        task = self._order[max(self.learning.task, 0)]
        return self._measured.once(round, ("score", task), lambda: self.evaluate("global"))

    def remember_trained(self, round: int, *, changes: bool = True) -> None:
        """Evaluate on earlier tasks too: what guidance does to them is `spatial_forgetting`.

        Both accuracies are those of all tasks so far, as the one that is measured afterwards is.
        """
        with self.tests.at_one_moment():
            super().remember_trained(round, changes=changes)
            if not changes:
                return
            before, _ = self.tests.measure(self.tests.met())
            self._tasks_before = (round, before)
            self.effect.begin_at(dict(zip(SPLITS, self.tests.so_far(before), strict=True)))

    def task_metrics(self, round: int) -> dict[str, float]:
        """Return accuracies on all tasks met so far and on the next one, and where they have dropped.

        At round 0, before any training, all that the client will meet are measured. What is not measured is
        NaN.
        """
        met = self.tests.met()
        measured = self._order if round == 0 else self._order[: self.learning.task + 2]
        now, inferred = self.tests.measure(measured, round)
        found = {
            TaskMetric(accuracy_name(protocol), split, t).key: float(now[p, s, t])
            for p, protocol in enumerate(self.tests.protocols)
            for s, split in enumerate(SPLITS)
            for t in range(len(self._tasks))
        }
        found |= {
            TaskMetric(TASK_INFERENCE_RATE, split, t).key: float(inferred[s, t])
            for s, split in enumerate(SPLITS)
            for t in range(len(self._tasks))
        }
        main = self.tests.main
        round_before, before = self._tasks_before
        guided = round_before == round and round > 0
        for s, split in enumerate(SPLITS):
            for t in range(len(self._tasks)):
                learned = before[main, s, t] if guided else now[main, s, t]
                earlier = t in met[:-1]
                known = self._tasks_after[main, s, t] if earlier else nan
                spatial = learned - now[main, s, t] if guided and earlier else nan
                found[TaskMetric("spatial_forgetting", split, t).key] = float(spatial)
                found[TaskMetric("temporal_forgetting", split, t).key] = float(known - learned)
        self._tasks_after = now
        if round > 0:
            for split, accuracy in zip(SPLITS, self.tests.so_far(now), strict=True):
                moments = self.effect.two_moments(round, split, accuracy)
                found |= {f"{name}_{split}": value for name, value in moments.items()}
        return found

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

    def _answer(self, x: np.ndarray) -> np.ndarray:
        """Return those `[n, C]` of the present task."""
        if not self.learning.learner.overrides("answers") and self._answers_by_guidance:
            return super()._answer(x)
        return self.tests.present(x)

    # State --------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that `restore` needs to continue exactly here."""
        arrays = under(LEARNER, self.learning.state())
        round, before = self._tasks_before
        arrays |= {TASKS_AFTER: self._tasks_after, TASKS_BEFORE: before}
        if self._taught_again:
            arrays[TAUGHT_AGAIN] = np.array(sorted(self._taught_again.items()), dtype=np.int64)
        return super().state() | arrays | {TASKS_BEFORE_ROUND: np.array(round, dtype=np.int64)}

    def restore(self, arrays: Arrays) -> None:
        """Continue from a state that `state` returned."""
        super().restore(arrays)
        self._tasks_after = np.array(arrays[TASKS_AFTER])
        self._tasks_before = (int(arrays[TASKS_BEFORE_ROUND]), np.array(arrays[TASKS_BEFORE]))
        self._taught_again = dict(arrays[TAUGHT_AGAIN].tolist()) if TAUGHT_AGAIN in arrays else {}
        self.learning.restore(below(LEARNER, arrays))
        if self.learning.task >= 0:
            self.data = self._tasks[self._order[self.learning.task]]
