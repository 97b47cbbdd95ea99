"""Random draws, each derived from its purpose.

A draw belongs to a ``(seed, purpose, client, round, task)``. Two runs that agree on these agree on
the draw, whatever engine, actor or order the work ran in. No global generator is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(
    seed: int, purpose: str, *, client: int | None = None, round: int | None = None, task: int | None = None
) -> int:
    """Return the 63-bit seed of one purpose, e.g. ``"batches"``, of a client, a 1-based round or a task."""
    label = f"{seed}|{purpose}|{client}|{round}|{task}".encode()
    return int.from_bytes(hashlib.blake2b(label, digest_size=8).digest(), "little") >> 1


def numpy_generator(
    seed: int, purpose: str, *, client: int | None = None, round: int | None = None, task: int | None = None
) -> np.random.Generator:
    """Return the NumPy generator of one purpose (see `derive_seed`)."""
    return np.random.default_rng(derive_seed(seed, purpose, client=client, round=round, task=task))


def torch_generator(
    seed: int, purpose: str, *, client: int | None = None, round: int | None = None, task: int | None = None
) -> torch.Generator:
    """Return the CPU torch generator of one purpose (see `derive_seed`)."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, purpose, client=client, round=round, task=task))


@contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """Give code with torch's global generator (initialisers, dropout) its own stream."""
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        if devices:
            torch.manual_seed(seed)
        else:  # it formats a stack trace for every missing kind of device: half a millisecond
            torch.default_generator.manual_seed(seed)
        yield
