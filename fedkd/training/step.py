"""One step of training: the gradient of a loss over a batch or a few, and the optimiser's step."""

import operator
from collections.abc import Hashable, Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from fedkd.training.fast.known_modules import all_recordable
from fedkd.training.fast.replay import Replays
from fedkd.training.job import TrainJob
from fedkd.training.optimizer import begin_adam
from fedkd.training.optimizer_state import names_of, optimizer_state


class Stepper:
    """Takes the steps of a job, replayed from `replays`; each of `clipped` is clipped alone."""

    def __init__(
        self,
        job: TrainJob,
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        replays: Replays | None = None,
        clipped: Sequence[Sequence[Tensor]] | None = None,
    ) -> None:
        self._clipped = [parameters] if clipped is None else clipped
        self._job, self._parameters, self._optimizer = job, parameters, optimizer
        self._corrected: list[Tensor] = []
        if job.correction is not None:
            self._corrected = [parameter for parameter in job.model.parameters() if parameter.requires_grad]
        self._replays = replays if _replayable(job) else None
        # An optimiser may create its state in its first step, which a recording would not repeat.
        begun = self._replays is not None and job.optimizer_state is None and begin_adam(optimizer)
        self._plain_steps = 1 if job.optimizer.slots and not begun else 0
        self._kind: Hashable | None = None
        self._changed: list[Tensor] = []
        self._read: list[Tensor] = []
        self._remembered: list[Tensor] = []
        self._looks = True

    def begin_epoch(self) -> None:
        """Search anew for tensors of steps besides the model's and the batch."""
        self._looks = True

    def take(
        self, batches: Sequence[Tensor], sizes: Sequence[int], *, counts: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Take a step on batches of indices ``[B]``; return their losses and, if counted, right answers."""
        job = self._job
        arrays = (
            [*(array.index_select(0, index) for array in job.arrays), *job.draw_aux()] for index in batches
        )
        if self._replays is None or self._plain_steps > 0:
            self._plain_steps -= 1
            told = self._step(arrays, sizes, counts=counts)
        else:
            told = self._replayed(self._replays, next(arrays), sizes[0], counts=counts)
        return told[: len(batches)], told[len(batches) :]

    def _replayed(self, replays: Replays, batch: list[Tensor], size: int, *, counts: bool) -> list[Tensor]:
        job = self._job
        if self._looks:
            self._look(replays)
        if self._kind is None:
            return self._step([batch], [size], counts=counts)
        kind: Hashable = (self._kind, size, counts)
        read = [*batch, *self._read]
        if job.rules is not None:
            drawn = job.rules.draw()
            kind = (kind, *(tensor.shape for tensor in drawn))
            read = [*batch, *drawn, *self._read]
        told = replays.replay(kind, self._changed, read)
        if told is not None:
            return told
        told = replays.take(
            kind, lambda: self._step([batch], [size], counts=counts), self._changed, read, self._intact
        )
        # A step that is taken may have replaced tensors of the rules.
        self._looks = not replays.refuses(kind) and not self._intact()
        return told

    def _look(self, replays: Replays) -> None:
        job = self._job
        self._looks = False
        self._kind = None
        rules = None if job.rules is None else job.rules.kind
        if job.rules is not None and rules is None:
            return
        own = dict([*job.model.named_parameters(), *job.model.named_buffers()])
        named = names_of(self._parameters, own.items())
        state = optimizer_state(self._optimizer, named)
        known = {id(tensor) for tensor in own.values()}
        loose = [tensor for tensor in self._parameters if id(tensor) not in known]
        self._remembered = [] if job.rules is None else list(job.rules.reads)
        self._changed = [*own.values(), *loose, *state.values(), *self._remembered]
        self._read = [*job.constants, *(job.correction or ())]
        tensors = [*self._changed, *self._read]
        first = {id(tensor): place for place, tensor in reversed(list(enumerate(tensors)))}
        twice = tuple((n, first[id(t)]) for n, t in enumerate(tensors) if first[id(t)] != n)
        self._kind = replays.number((job.signature(own), rules, tuple(named), tuple(state), twice))

    def _intact(self) -> bool:
        """Return whether the rules still have the same tensors."""
        if self._job.rules is None:
            return True
        reads = self._job.rules.reads
        return len(reads) == len(self._remembered) and all(map(operator.is_, reads, self._remembered))

    def _step(self, batches: Iterable[list[Tensor]], sizes: Sequence[int], *, counts: bool) -> list[Tensor]:
        job, rules = self._job, self._job.rules
        self._optimizer.zero_grad(set_to_none=True)
        losses, right = self._accumulate_gradients(batches, sizes, counts=counts)
        if job.optimizer.clip_norm is not None:
            for parameters in self._clipped:
                nn.utils.clip_grad_norm_(parameters, job.optimizer.clip_norm)
        if job.correction is not None:
            add_to_gradients(self._corrected, job.correction)
        if rules is not None:
            rules.after_backward()
        _lay_out_gradients(self._parameters)
        self._optimizer.step()
        if rules is not None:
            rules.after_step()
        return losses + right

    def _accumulate_gradients(
        self, batches: Iterable[list[Tensor]], sizes: Sequence[int], *, counts: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Compute gradients of the mean loss over all samples of some batches; return losses and hits."""
        job = self._job
        autocast = job.autocast and job.arrays[0].device.type == "cuda"
        losses: list[Tensor] = []
        right: list[Tensor] = []
        for batch, size in zip(batches, sizes, strict=True):
            if job.rules is not None:
                job.rules.before_step()
            with torch.autocast("cuda", torch.bfloat16) if autocast else nullcontext():
                if counts and job.scored_loss is not None:
                    value, correct = job.scored_loss(job.model, *batch, *job.constants)
                    right.append(correct)
                else:
                    value = job.loss(job.model, *batch, *job.constants)
                own = batch[: len(job.arrays)]
                penalty = None if job.rules is None else job.rules.penalty(own, value)
            whole = value if penalty is None else value + penalty
            (whole if len(sizes) == 1 else whole * (size / sum(sizes))).backward()
            losses.append(value.detach())
        return losses, right


def _replayable(job: TrainJob) -> bool:
    if job.kind is None or not job.replayable or job.accumulate > 1 or job.lr_schedule != "constant":
        return False
    if any(array.device.type != "cpu" for array in job.arrays):
        return False  # on other devices autograd uses its own thread
    return all_recordable(job.model)


def add_to_gradients(parameters: Sequence[Tensor], correction: Sequence[Tensor]) -> None:
    """Add one tensor to the gradient of each parameter."""
    for parameter, extra in zip(parameters, correction, strict=True):
        if parameter.grad is None:  # the loss does not depend on it
            parameter.grad = extra.clone()
        else:
            parameter.grad.add_(extra)


def _lay_out_gradients(parameters: Sequence[Tensor]) -> None:
    """Give gradients their parameters' memory layout: fused optimisers pair elements by position."""
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
