"""Joint training of several models of one architecture, with stacked weights ``[k, ...]`` under `vmap`."""

import math
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedkd.plugins import contain_plugin
from fedkd.storage import once_for_runs
from fedkd.training.executor import Executor, LoopExecutor
from fedkd.training.fast.known_modules import reached_into
from fedkd.training.fast.replay import Replays
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.loop import all_finite, batch_starts, diverged, sum_over_samples
from fedkd.training.majority_guessing import TrainingHits
from fedkd.training.optimizer import make_optimizer
from fedkd.training.optimizer_state import load_optimizer_state, names_of, optimizer_state
from fedkd.training.step import add_to_gradients

Tensors = dict[str, Tensor]

RECORDINGS_BYTES = 2**20
"""Rough size of the recorded steps of a run."""


class VectorisedExecutor:
    """Runs jobs of equal kind, shapes and settings together, and others in a loop.

    Each model sees its own batches in its own order. Sums are in another order than in the loop, but the same
    jobs together give the same bits. Optimiser, epochs and batch size must be equal too. The loop takes jobs
    with rules that change steps, early stopping, accumulated gradients or a schedule over steps. It also
    takes jobs that `vmap` cannot run: dropout, changed buffers, a loss that branches on values. `together` is
    the most jobs at a time.
    """

    def __init__(self, together: int, *, fast: bool = True) -> None:
        self._together = together
        self._loop = LoopExecutor(fast=fast)
        self._not_for_vmap: set[Hashable] = set()

    def run(self, jobs: Sequence[TrainJob]) -> list[FitResult | Exception]:
        outcomes: dict[int, FitResult | Exception] = {}
        for numbers in self._groups(jobs):
            outcomes |= zip(numbers, self._run_group([jobs[number] for number in numbers]), strict=True)
        return [outcomes[number] for number in range(len(jobs))]

    def _groups(self, jobs: Sequence[TrainJob]) -> Iterator[list[int]]:
        alike: dict[Hashable, list[int]] = {}
        for number, job in enumerate(jobs):
            kind = kind_of(job)
            alone = kind is None or kind in self._not_for_vmap
            alike.setdefault(("alone", number) if alone else kind, []).append(number)
        for numbers in alike.values():
            for start in range(0, len(numbers), self._together):
                yield numbers[start : start + self._together]

    def _run_group(self, jobs: Sequence[TrainJob]) -> list[FitResult | Exception]:
        if len(jobs) == 1:
            return self._loop.run(jobs)
        drawn = [job.generator.get_state() for job in jobs]
        positions = [None if job.aux_batches is None else job.aux_batches.position() for job in jobs]
        try:
            with contain_plugin():
                return fit_together(jobs)
        except NotForVmapError:
            self._not_for_vmap.add(kind_of(jobs[0]))
            for job, state, position in zip(jobs, drawn, positions, strict=True):
                job.generator.set_state(state)
                if job.aux_batches is not None and position is not None:
                    job.aux_batches.go_back(position)
            return self._loop.run(jobs)
        except Exception as error:
            return [error] * len(jobs)


def make_executor(name: str, together: int, *, fast: bool = True, steps: Hashable = None) -> Executor:
    """Return the executor ``"loop"`` or ``"vectorised"`` (arguments: `VectorisedExecutor`).

    `steps` is a key of everything besides a step's kind that decides it. Runs of a process with an equal key
    share recorded steps; None: not even then.
    """
    if name == "vectorised":
        return VectorisedExecutor(together, fast=fast)
    if steps is None or not fast:
        return LoopExecutor(fast=fast)
    replays = once_for_runs(("steps", steps), Replays, lambda _: RECORDINGS_BYTES)
    replays.begin_run()
    return LoopExecutor(replays)


class NotForVmapError(Exception):
    """Jobs cannot be run together; only their generators have changed."""


def kind_of(job: TrainJob) -> Hashable | None:
    """Return a key, equal for jobs that can run together; None: the loop runs this job."""
    steps_as_they_are = job.rules is None or job.rules.idle
    if job.kind is None or not steps_as_they_are or job.early_stopping is not None:
        return None
    if any(map(reached_into, job.model.modules())):
        return None
    if job.accumulate > 1 or job.lr_schedule != "constant" or not len(job.arrays[0]):
        return None
    return job.signature(), job.epochs


def fit_together(jobs: Sequence[TrainJob]) -> list[FitResult | Exception]:
    """Train models of one `kind_of` in place; `NotForVmapError` if they cannot run together."""
    size = jobs[0].batch_size
    # The longest jobs first: jobs with batches left stay in front, and no weight moves.
    samples = [len(job.arrays[0]) for job in jobs]
    places = sorted(range(len(jobs)), key=lambda place: divmod(samples[place], size), reverse=True)
    group = _Group([jobs[place] for place in places])
    with group.stacked():
        group.train()
        outcomes = dict(zip(places, group.results(), strict=True))
    return [outcomes[place] for place in range(len(jobs))]


class _Group:
    """Jobs run together, those with the most batches first."""

    def __init__(self, jobs: Sequence[TrainJob]) -> None:
        self._jobs = jobs
        models = [job.model for job in jobs]
        self._parameters = {
            name: [dict(model.named_parameters())[name] for model in models]
            for name, _ in models[0].named_parameters()
        }
        self._weights = {name: _stack(of_jobs) for name, of_jobs in self._parameters.items()}
        self._buffers = {
            name: _stack([dict(model.named_buffers())[name] for model in models])
            for name, _ in models[0].named_buffers()
        }
        self._constants = [_stack(of_jobs) for of_jobs in zip(*(job.constants for job in jobs), strict=True)]
        self._trained = [[p for p in model.parameters() if p.requires_grad] for model in models]
        self._loss = _Loss(jobs[0])
        self._totals, self._steps, self._samples = [0.0] * len(jobs), [0] * len(jobs), [0] * len(jobs)
        self._hits: list[TrainingHits | None] = [None] * len(jobs)
        self._failures: dict[int, Exception] = {}
        self._begun = False

    @contextmanager
    def stacked(self) -> Iterator[None]:
        """Make the models' parameters views of the stacked ones in the block."""
        own = {name: [p.data for p in of_jobs] for name, of_jobs in self._parameters.items()}
        for name, of_jobs in self._parameters.items():
            for parameter, view in zip(of_jobs, self._weights[name].unbind(0), strict=True):
                parameter.data = view
        try:
            yield
        finally:
            for name, of_jobs in self._parameters.items():
                for parameter, data in zip(of_jobs, own[name], strict=True):
                    data.copy_(parameter.data)
                    parameter.data, parameter.grad = data, None

    def train(self) -> None:
        first = self._jobs[0]
        self._optimizer = make_optimizer(first.optimizer, [p for own in self._trained for p in own])
        for job, own in zip(self._jobs, self._trained, strict=True):
            job.model.train()
            if job.optimizer_state is not None:
                named = names_of(own, job.model.named_parameters())
                load_optimizer_state(self._optimizer, job.optimizer, named, job.optimizer_state)
        for epoch in range(1, first.epochs + 1):
            self._epoch(epoch, counts=first.scored_loss is not None and epoch == first.epochs)

    def results(self) -> list[FitResult | Exception]:
        return [self._failures.get(place) or self._result(place) for place in range(len(self._jobs))]

    def _result(self, place: int) -> FitResult | Exception:
        job, own, samples = self._jobs[place], self._trained[place], self._samples[place]
        if self._steps[place] and not all_finite(own):
            return diverged(f"weights stopped being finite in epoch {job.epochs}")
        state = None
        if job.optimizer_state is not None:
            state = optimizer_state(self._optimizer, names_of(own, job.model.named_parameters()))
        mean = self._totals[place] / samples if samples else math.nan
        return FitResult(mean, self._steps[place], samples, self._hits[place], state)

    def _epoch(self, epoch: int, *, counts: bool) -> None:
        orders = [
            torch.randperm(len(job.arrays[0]), generator=job.generator).to(job.arrays[0].device)
            for job in self._jobs
        ]
        losses: list[list[Tensor]] = [[] for _ in self._jobs]
        sizes: list[list[int]] = [[] for _ in self._jobs]
        right: list[list[Tensor]] = [[] for _ in self._jobs]
        for places, batches in self._batches(orders):
            found, correct = self._step(places, batches, counts=counts)
            for place, batch, loss, number in zip(places, batches, found, correct, strict=True):
                losses[place].append(loss)
                sizes[place].append(len(batch))
                right[place].append(number)
        for place, job in enumerate(self._jobs):
            total, samples = sum_over_samples(losses[place], sizes[place]), sum(sizes[place])
            self._totals[place] += total
            self._steps[place] += len(sizes[place])
            self._samples[place] += samples
            if counts and samples:
                self._hits[place] = TrainingHits(int(torch.stack(right[place]).sum()), samples, job.guessing)
            if job.rules is not None:
                job.rules.after_epoch()
            if not math.isfinite(total):
                what = f"training loss became {total} in epoch {epoch}"
                self._failures.setdefault(place, diverged(what))

    def _batches(self, orders: Sequence[Tensor]) -> Iterator[tuple[range, list[Tensor]]]:
        size, samples = self._jobs[0].batch_size, [len(order) for order in orders]
        starts = [
            batch_starts([job.model], number, size) for job, number in zip(self._jobs, samples, strict=True)
        ]
        for step in range(len(starts[0])):
            begun = [
                orders[place][of_job[step] : of_job[step] + size]
                for place, of_job in enumerate(starts)
                if step < len(of_job)
            ]
            first = 0
            for place in range(1, len(begun) + 1):
                if place == len(begun) or len(begun[place]) != len(begun[first]):
                    yield range(first, place), begun[first:place]
                    first = place

    def _step(
        self, places: range, batches: Sequence[Tensor], *, counts: bool
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Take a step of some jobs; return their losses and numbers of correct answers."""
        jobs, among = self._jobs[places.start : places.stop], slice(places.start, places.stop)
        losses, right = self._gradients(jobs, among, batches, counts=counts)
        for job, own in zip(jobs, self._trained[among], strict=True):
            if job.optimizer.clip_norm is not None:
                nn.utils.clip_grad_norm_(own, job.optimizer.clip_norm)
            if job.correction is not None:
                add_to_gradients(own, job.correction)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return losses.unbind(0), right.unbind(0)

    def _gradients(
        self, jobs: Sequence[TrainJob], among: slice, batches: Sequence[Tensor], *, counts: bool
    ) -> tuple[Tensor, Tensor]:
        """Leave the gradient of each job's mean loss; return losses and correct answers, ``[k]``."""
        arrays = [
            torch.stack([array.index_select(0, batch) for array, batch in zip(of_jobs, batches, strict=True)])
            for of_jobs in zip(*(job.arrays for job in jobs), strict=True)
        ]
        arrays += [torch.stack(of_jobs) for of_jobs in zip(*(job.draw_aux() for job in jobs), strict=True)]
        leaves = {
            name: weights[among].requires_grad_(self._parameters[name][0].requires_grad)
            for name, weights in self._weights.items()
        }
        buffers = {name: values[among] for name, values in self._buffers.items()}
        constants = [values[among] for values in self._constants]
        autocast = jobs[0].autocast and arrays[0].device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if autocast else nullcontext():
            losses, right = self._forward(leaves, buffers, [*arrays, *constants], counts=counts)
        losses.sum().backward()
        for name, leaf in leaves.items():
            if leaf.grad is not None:
                parameters = self._parameters[name][among]
                for parameter, gradient in zip(parameters, leaf.grad.unbind(0), strict=True):
                    parameter.grad = gradient
        return losses.detach(), right

    def _forward(
        self, leaves: Tensors, buffers: Tensors, tensors: Sequence[Tensor], *, counts: bool
    ) -> tuple[Tensor, Tensor]:
        self._loss.counts = counts

        def call(leaves: Tensors, buffers: Tensors, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            substitutes = {f"model.{name}": tensor for name, tensor in (leaves | buffers).items()}
            return functional_call(self._loss, substitutes, tensors)

        if self._begun:
            return vmap(call)(leaves, buffers, *tensors)
        before = {name: values.clone() for name, values in buffers.items()}
        try:
            found = vmap(call)(leaves, buffers, *tensors)
        except Exception as error:
            raise NotForVmapError(str(error)) from error
        if any(not torch.equal(before[name], values) for name, values in buffers.items()):
            raise NotForVmapError("the model changes its buffers")
        self._begun = True
        return found


class _Loss(nn.Module):
    """A job's loss and its model as one module, for calls with given parameters."""

    def __init__(self, job: TrainJob) -> None:
        super().__init__()
        self.model = job.model
        self.counts = False  # True if correct answers are counted
        self._job = job

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss over a batch, and the number of correctly classified samples."""
        job = self._job
        if self.counts and job.scored_loss is not None:
            return job.scored_loss(self.model, *tensors)
        loss = job.loss(self.model, *tensors)
        return loss, torch.zeros_like(loss, dtype=torch.int64)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.detach() for tensor in tensors])
