"""Steps recorded once, kernel by kernel, and replayed bit for bit without autograd's overhead."""

from collections.abc import Callable, Hashable, Sequence
from itertools import count

import torch
from torch import Tensor

from fedkd.training.fast.recording import DecidedOtherwiseError, Recording, Step, record

PATIENCE = 64
"""Steps of a kind before it is recorded: a recording takes about as long."""

MOST = 256
"""Kinds, and recordings, after which all are forgotten: each new learning rate makes new kinds."""

TRIALS = 64
"""Steps that branch differently after which a recording is given up."""


class Replays:
    """Recordings of steps by their kind, made after `patience` steps (None: `PATIENCE`).

    A recording is used only after it has reproduced one step of another batch bit for bit. Steps with
    undeclared tensors or values are never replayed. Steps may branch on booleans before their first change; a
    step that branches differently runs without the recording.
    """

    def __init__(self, patience: int | None = None) -> None:
        self._patience = PATIENCE if patience is None else patience
        self._count = count()
        self._numbers: dict[Hashable, int] = {}
        self._seen: dict[Hashable, int] = {}
        self._unproved: dict[Hashable, Recording] = {}
        self._proved: dict[Hashable, Recording] = {}
        self._refused: set[Hashable] = set()
        self._astray: dict[Hashable, int] = {}

    def begin_run(self) -> None:
        """Let every recording reproduce one step of the next run before it is used there."""
        self._unproved |= self._proved
        self._proved.clear()
        self._astray.clear()

    def number(self, kind: Hashable) -> int:
        """Return a number for a kind, equal for equal kinds and quicker to hash."""
        if kind not in self._numbers:
            if len(self._numbers) >= MOST:
                self._forget()
            self._numbers[kind] = next(self._count)
        return self._numbers[kind]

    def refuses(self, kind: Hashable) -> bool:
        """Return whether steps of a kind cannot be replayed."""
        return kind in self._refused

    def _forget(self) -> None:
        tables = (self._numbers, self._seen, self._unproved, self._proved, self._refused, self._astray)
        for table in tables:
            table.clear()

    def replay(
        self, kind: Hashable, changed: Sequence[Tensor], read: Sequence[Tensor]
    ) -> list[Tensor] | None:
        """Replay a step and return its result; None: no recording fits.

        Steps of equal `kind` run the same kernels on tensors of the same shapes and layouts. `changed` are
        the tensors that it may change in place, `read` all others, in a fixed order.
        """
        recording = self._proved.get(kind)
        if recording is None:
            return None
        try:
            return recording.replay([*changed, *read])
        except DecidedOtherwiseError:
            self._astray[kind] = self._astray.get(kind, 0) + 1
            if self._astray[kind] >= TRIALS:
                self._refused.add(kind)
                del self._proved[kind]
            return None

    def take(
        self,
        kind: Hashable,
        step: Step,
        changed: Sequence[Tensor],
        read: Sequence[Tensor],
        intact: Callable[[], bool] = lambda: True,
    ) -> list[Tensor]:
        """Take a step, and record it if due; `intact`: whether the next has the same tensors."""
        if kind in self._refused or kind in self._proved:  # proved: this step branched differently
            return step()
        if kind in self._unproved:
            return self._prove(kind, step, changed, read)
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if self._seen[kind] <= self._patience:
            return step()
        if len(self._proved) >= MOST:
            self._forget()
        told, recording = record(step, [*changed, *read])
        if not intact():  # it replaced tensors, which its kernels do not show
            return told
        if recording is None:
            self._refused.add(kind)
        else:
            self._unproved[kind] = recording
        return told

    def _prove(
        self, kind: Hashable, step: Step, changed: Sequence[Tensor], read: Sequence[Tensor]
    ) -> list[Tensor]:
        recording, before = self._unproved[kind], _copies(changed)
        draws = torch.get_rng_state()
        try:
            replayed = [*_copies(recording.replay([*changed, *read])), *_copies(changed)]
        except DecidedOtherwiseError:  # it does not cover this step
            return step()
        except Exception:  # a failed replay must not fail the step
            replayed = []
        del self._unproved[kind]
        drawn = torch.get_rng_state()
        torch.set_rng_state(draws)
        for tensor, value in zip(changed, before, strict=True):
            tensor.data.copy_(value)
        told = step()
        same = len(replayed) == len(told) + len(changed) and all(map(_identical, replayed, [*told, *changed]))
        if same and torch.equal(drawn, torch.get_rng_state()):
            self._proved[kind] = recording
        else:
            self._refused.add(kind)
        return told


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _identical(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other.detach())
