"""A client's network under a learner: the course of tasks, rounds, phases and steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.fast_steps import step_form
from fedkd.continual.learner import Learner
from fedkd.continual.mixins import (
    WEIGHTS,
    Phases,
    StateExchange,
    TaskInference,
    extra_outputs,
    task_parameters_of,
)
from fedkd.continual.reopened import Reopenable, Reopened, ReopenedRules
from fedkd.continual.rules import LearnerRules
from fedkd.continual.statistics import (
    keep_statistics,
    recall_statistics,
    reset_statistics,
    statistics_names,
)
from fedkd.continual.task_model import TaskModel
from fedkd.storage import add_prefix, strip_prefix
from fedkd.training import (
    FitResult,
    Training,
    TrainJob,
    arrays_to_tensors,
    batch_starts,
    merge_results,
    tensors_to_arrays,
)

MEMORY = "memory/"
PROGRESS = "progress"
PHASE = "phase"


class TaskLearning:
    """Local training and distillation of a client's network by a learner.

    It applies effective parameters, penalties, projections, phases, and each task's normalisation statistics.
    """

    def __init__(self, learner: Learner, context: LearnerContext, *, fast: bool = True) -> None:
        network = context.network
        learner.check(network)
        self.learner = learner
        self._form = step_form(learner, fast=fast)
        self.context = context
        self.ended = -1
        """The last ended task."""
        self.peak_bytes = 0
        """The most the learner has remembered at once."""
        self._keeps_statistics = learner.traits.task_statistics and bool(statistics_names(network))
        self._kernels = {name: p for name, p in network.named_parameters() if p.dim() == 4}
        learner.prepare(context)

    @property
    def task(self) -> int:
        """The last task that was begun; −1: none."""
        return self.context.task

    def enter(self, task: int) -> None:
        """Begin a task if it has not begun; skipped tasks begin and end first."""
        while self.context.task < task:
            if self.context.task > self.ended:
                self.end()
            self.context.task += 1
            self.context.phase = ""
            if self._keeps_statistics and self.context.task > 0:
                reset_statistics(self.context.network)
            with torch.enable_grad():
                self.learner.begin_task(self.context)
            self._track_peak()

    def end(self) -> None:
        """End the present task if it has not ended."""
        context = self.context
        if self.ended >= context.task:
            return
        # The phase may not have come to its end if a client was slow or missing.
        with torch.enable_grad():
            self.learner.end_task(context)
        if self._keeps_statistics:
            keep_statistics(context)
        self.ended = context.task
        self._track_peak()

    def _track_peak(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self.context.stored_bytes())

    def knows(self, task: int) -> bool:
        """Return whether a task has begun; task inference is limited to such tasks."""
        return task <= self.context.task

    def model(self, task: int | None = None) -> TaskModel:
        """Return the network for a task; None: the present task."""
        chosen = max(self.context.task, 0) if task is None else task
        units = self.context.units[chosen]
        every = len(units) == self.context.outputs and extra_outputs(self.learner) == 0
        return TaskModel(self.context.network, None if every else units, self._substitutes(chosen))

    def substitutes(self) -> dict[str, Tensor]:
        """Return tensors that replace the network's own in the present task, by name."""
        return self._substitutes(max(self.context.task, 0))

    def _substitutes(self, task: int) -> dict[str, Tensor]:
        if task == self.context.task and self.context.step_cache is not None:
            return self._completed(task, self._form.parameters(self.learner, self.context))
        return self._completed(task, task_parameters_of(self.learner, self.context, task))

    def _completed(self, task: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return effective parameters in the network's memory layout, with their task's statistics."""
        for name, kernel in self._kernels.items():
            if name in tensors:
                # The layout of a convolution's weight decides the last bit of its sums.
                channels_last = kernel.is_contiguous(memory_format=torch.channels_last)
                layout = torch.channels_last if channels_last else torch.contiguous_format
                tensors[name] = tensors[name].contiguous(memory_format=layout)
        if self._keeps_statistics and task <= self.ended and task != self.context.task:
            return {**tensors, **recall_statistics(self.context, task)}
        return tensors

    def export_state(self, tasks: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the learner's arrays for its strategy; empty without `StateExchange`."""
        if not isinstance(self.learner, StateExchange):
            return {}
        with torch.no_grad():
            return tensors_to_arrays(self.learner.export_state(self.context, tasks))

    def import_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Hand the strategy's arrays to the learner."""
        if isinstance(self.learner, StateExchange):
            tensors = {
                name: tensor.to(self.context.device) for name, tensor in arrays_to_tensors(arrays).items()
            }
            self.learner.import_state(self.context, tensors)
            self._track_peak()

    def predict_without_task(self, model: TaskModel, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return outputs and inferred tasks as `TaskInference`; other learners infer none."""
        if isinstance(self.learner, TaskInference):
            return self.learner.predict_without_task(self.context, model, x)
        with torch.no_grad():
            return self.learner.predict(self.context, model, x), None

    def fit(
        self,
        job: TrainJob,
        *,
        first_epoch: int,
        task_epochs: int,
        after_epoch: Callable[[], None] | None = None,
    ) -> Training[FitResult]:
        """Train for some of the present task's epochs, with one job per phase.

        Args:
            job: The job without a learner, on the client's samples, labels and, if the learner
                `changes_training`, their tasks. Each phase has its own seed.
            first_epoch: Place of the job's first epoch in the task, 0-based.
            task_epochs: Epochs of the whole task.
        """
        epochs = range(first_epoch, first_epoch + job.epochs)
        results: list[FitResult] = []
        state = job.optimizer_state
        for phase, group in groupby(epochs, lambda epoch: self._phase_of(epoch, task_epochs)):
            part = replace(job, epochs=len(list(group)), seed=job.seed + len(results), optimizer_state=state)
            self._enter_phase(phase)
            results.append((yield from self._fit_phase(part, after_epoch, labelled=True)))
            if state is not None:  # the next phase may train other tensors again
                state = {**state, **(results[-1].optimizer_state or {})}
        return replace(merge_results(results), optimizer_state=state)

    def distil(self, job: TrainJob) -> Training[FitResult]:
        """Distil guidance in the task's present phase."""
        self._enter_phase(self.context.phase or self._phase_of(0, 1))
        return (yield from self._fit_phase(job))

    def teach_again(self, job: TrainJob, task: int) -> Training[FitResult | None]:
        """Distil guidance into an ended task that the learner reopens; None: it does not reopen it."""
        learner = self.learner
        if isinstance(learner, Reopenable):
            reopened = learner.reopen(self.context, task)
        else:
            reopened = Reopened(learner, self.context, task)
        if reopened is None:
            return None

        def substitutes() -> dict[str, Tensor]:
            return self._completed(task, reopened.task_parameters())

        spec = reopened.optimizer(job.optimizer)
        model = TaskModel(self.context.network, self.model(task).units)
        rules = ReopenedRules(reopened, model, substitutes, spec)
        try:
            result = yield replace(job, model=model, optimizer=spec, rules=rules)
        finally:
            reopened.close()
        return result

    def _phase_of(self, epoch: int, epochs: int) -> str:
        return self.learner.phase_of(epoch, epochs) if isinstance(self.learner, Phases) else WEIGHTS

    def _enter_phase(self, phase: str) -> None:
        if phase != self.context.phase:
            self.context.phase = phase
            if isinstance(self.learner, Phases):
                with torch.enable_grad():
                    self.learner.begin_phase(self.context)
                self._track_peak()

    def _fit_phase(
        self, job: TrainJob, after_epoch: Callable[[], None] | None = None, *, labelled: bool = False
    ) -> Training[FitResult]:
        spec = job.optimizer
        if isinstance(self.learner, Phases):
            spec = self.learner.optimizer(self.context, spec)
        model = self.model()
        batches = len(batch_starts([job.model], len(job.arrays[0]), job.batch_size))
        rules = LearnerRules(
            self.learner,
            self.context,
            model,
            self._substitutes,
            spec,
            after_epoch,
            steps=-(-batches // job.accumulate),
            accumulate=job.accumulate,
            labelled=labelled,
            form=self._form,
        )
        units = None if model.units is None else tuple(model.units.tolist())
        kind = None if job.kind is None else (job.kind, units)
        try:
            result = yield replace(job, model=model, optimizer=spec, rules=rules, kind=kind)
        except BaseException:
            if self.context.step_cache is not None:
                self._form.end(self.learner, self.context)
            raise
        finally:
            self.context.step_cache, self.context.position, self.context.drawn = None, None, None
        self._track_peak()
        return result

    def state(self) -> dict[str, np.ndarray]:
        """Return the state besides the network, for an exact `restore`."""
        # Copies: memory may change in place while the state is being written.
        memory = self.context.memory.items()
        arrays = add_prefix(
            MEMORY, {name: np.array(v.detach().cpu().numpy(), order="C") for name, v in memory}
        )
        progress = (self.context.task, self.ended, self.peak_bytes)
        arrays[PROGRESS] = np.array(progress, dtype=np.int64)
        arrays[PHASE] = np.frombuffer(self.context.phase.encode(), dtype=np.uint8)
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from a state that `state` returned."""
        self.context.task, self.ended, self.peak_bytes = arrays[PROGRESS].tolist()
        self.context.phase = arrays[PHASE].tobytes().decode()
        self.context.memory.clear()
        for name, values in strip_prefix(MEMORY, arrays).items():
            self.context.memory[name] = torch.from_numpy(np.array(values)).to(self.context.device)
