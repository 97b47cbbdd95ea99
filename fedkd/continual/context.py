"""A learner's view of one client."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedkd.continual.layers import Layer, find_layers
from fedkd.models import evaluation_mode
from fedkd.randomness import torch_generator

T = TypeVar("T")
Samples = Callable[[int], tuple[Tensor, Tensor]]
"""From a task to its training samples ``[n, *input_shape]`` and labels ``[n]``."""


class LearnerContext:
    """One client's network and its learner's memory.

    Args:
        network: On its device, superfluous outputs included.
        samples: Gives the client's training samples of a task, on the network's device.
        batch_size: Samples a training step.

    Attributes:
        memory: The learner's state by names, on the network's device (see `LearnerState`). Checkpoints save
            it, and its bytes are the learner's cost.
        task: Task being learned, 0-based; −1 before the first.
        phase: Phase of the task's training.
        units: Output units ``[C_t]`` of every task; a label y of task t belongs to unit ``units[t][y]``.
        outputs: Number O of output units of classes; a network may have further ones after them.
        step_cache: Results that all steps of an epoch share, by names. They follow from memory and weights,
            so they are not saved. Empty when an epoch begins; None outside of its steps.
        position: Place of the step in its epoch, from 0 to 1; None outside of an epoch's steps.
        drawn: Samples drawn ahead of the present step (see `FastSteps.draw`), or None.
        common_tasks: A number for each task, the same on all clients with a common start.
    """

    def __init__(
        self,
        network: nn.Module,
        units: Sequence[Sequence[int]],
        outputs: int,
        samples: Samples,
        *,
        seed: int,
        client: int,
        batch_size: int,
        common_tasks: Sequence[int] | None = None,
    ) -> None:
        self.network = network
        self.memory: dict[str, Tensor] = {}
        self.task = -1
        self.phase = ""
        self.device = next(network.parameters()).device
        self.units = tuple(torch.tensor(list(own), dtype=torch.int64, device=self.device) for own in units)
        self.outputs = outputs
        self.batch_size = batch_size
        self.step_cache: dict[str, Any] | None = None
        self.position: float | None = None
        self.drawn: Sequence[Tensor] | None = None
        self.layers: dict[str, Layer] = find_layers(network)
        self._samples = samples
        self._seed = seed
        self._client = client
        self._common_tasks = common_tasks
        self._unit_of_label = nn.utils.rnn.pad_sequence(list(self.units), batch_first=True)
        # Added to the outputs to select a task: 0 for its own units, −inf elsewhere, [T, O].
        self._closed = torch.full((len(self.units), outputs), -torch.inf, device=self.device)
        for task, own in enumerate(self.units):
            self._closed[task, own] = 0.0

    @property
    def tasks(self) -> int:
        """Number of tasks T of the stream."""
        return len(self.units)

    @property
    def tables(self) -> list[Tensor]:
        """Tensors that the context reads in a step: units of tasks and derived masks."""
        return [*self.units, self._unit_of_label, self._closed]

    def samples(self, task: int | None = None) -> tuple[Tensor, Tensor]:
        """Return a task's training samples ``[n, *input_shape]`` and labels ``[n]``; None: the present task.

        Only reference methods ask for an earlier task.
        """
        return self._samples(self.task if task is None else task)

    def generator(self, purpose: str, task: int | None = None) -> torch.Generator:
        """Return the CPU generator of a purpose and task; None: the present task."""
        index = self.task if task is None else task
        return torch_generator(self._seed, f"learner-{purpose}", client=self._client, task=index)

    def common_generator(self, purpose: str, task: int) -> torch.Generator:
        """Return a `generator` that is the same on all clients, for a common start of tasks."""
        if self._common_tasks is None:
            return self.generator(purpose, task)
        return torch_generator(self._seed, f"learner-{purpose}", task=self._common_tasks[task])

    def run(self, x: Tensor, substitutes: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return all outputs ``[B, O]`` in the network's present mode, superfluous ones last.

        `substitutes` are tensors that stand in for the network's own, by name.
        """
        return functional_call(self.network, dict(substitutes), (x,)) if substitutes else self.network(x)

    def logits_of(self, outputs: Tensor, task: int) -> Tensor:
        """Return a task's logits ``[B, C_t]`` among all outputs ``[B, O]``."""
        return outputs.index_select(1, self.units[task])

    def unit_of(self, labels: Tensor, tasks: Tensor) -> Tensor:
        """Return the output unit ``[B]`` of labels ``[B]`` of their tasks ``[B]``."""
        return self._unit_of_label[tasks, labels]

    def cross_entropy(
        self, outputs: Tensor, labels: Tensor, tasks: Tensor, reduction: str = "mean"
    ) -> Tensor:
        """Return the cross entropy of samples of several tasks, each among its own task's units.

        `outputs` are ``[B, O]`` or wider, `labels` ``[B]`` int64 positions among the units of each sample's
        task, `tasks` ``[B]`` int64. `reduction` is ``"mean"``, ``"sum"`` or ``"none"``.
        """
        target = self.unit_of(labels, tasks)
        return F.cross_entropy(self._allowed(outputs, tasks), target, reduction=reduction)

    def correct(self, outputs: Tensor, labels: Tensor, tasks: Tensor) -> Tensor:
        """Return the number of correct predictions, a scalar; arguments as in `cross_entropy`."""
        guessed = self._allowed(outputs.detach(), tasks).argmax(dim=1)
        return (guessed == self.unit_of(labels, tasks)).sum()

    def _allowed(self, outputs: Tensor, tasks: Tensor) -> Tensor:
        """Return outputs ``[B, O]`` in which all but the units of each sample's task are −inf."""
        return outputs[:, : self.outputs].float() + self._closed[tasks]

    def batches(self, count: int, size: int | None = None) -> Iterator[slice]:
        """Yield slices over `count` samples in order, `size` or `batch_size` at a time."""
        step = size or self.batch_size
        yield from (slice(start, start + step) for start in range(0, count, step))

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return the result of `make`, computed once for all steps of an epoch."""
        if self.step_cache is None:
            return make()
        if name not in self.step_cache:
            self.step_cache[name] = make()
        found: T = self.step_cache[name]
        return found

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Evaluation mode within a block, with gradients: for importances and subspaces."""
        with evaluation_mode(self.network), torch.enable_grad():
            yield

    def stored_bytes(self) -> int:
        """Return the bytes of the memory."""
        return sum(values.numel() * values.element_size() for values in self.memory.values())
