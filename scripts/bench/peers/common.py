"""What every driver of `round.py` shares: its data, its model, and how it tells what it took.

A driver is run as ``python DRIVER.py FOLDER ROUNDS PROCESSES``. FOLDER holds ``data.npz`` (images in uint8,
labels, and the start of each client's samples, which lie one after the other). Its last line is JSON: the
moments, in seconds, at which the global model of every round had been evaluated, and its accuracies.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

LR, BATCH, SEED = 0.05, 32, 1
MEAN, STD = 0.2860, 0.3530


@dataclass(frozen=True)
class Images:
    """Fashion-MNIST, dealt to clients.

    Attributes:
        x: Training images ``[n, 28, 28]``, those of a client one after the other.
        y: Their labels.
        starts: Where each client's begin, and the end of the last: N + 1 of them.
        test_x: Test images.
        test_y: Their labels.
    """

    x: np.ndarray
    y: np.ndarray
    starts: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    @property
    def clients(self) -> int:
        """Number of clients N."""
        return len(self.starts) - 1

    def of(self, client: int) -> slice:
        """Return where a client's samples lie."""
        return slice(int(self.starts[client]), int(self.starts[client + 1]))


@functools.cache
def load_images(folder: Path | str) -> Images:
    """Return the data of a folder."""
    with np.load(Path(folder) / "data.npz", allow_pickle=False) as stored:
        return Images(**{name: stored[name] for name in stored.files})


def as_tensors(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return normalised images ``[n, 1, 28, 28]`` and labels."""
    images = torch.from_numpy(x.astype(np.float32) / 255.0)
    return ((images - MEAN) / STD).unsqueeze(1), torch.from_numpy(y.astype(np.int64))


def lenet() -> nn.Module:
    """Return LeNet-5 for 28×28 images, as most would write it: 61,706 parameters."""
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


@torch.no_grad()
def hits(model: nn.Module, x: Tensor, y: Tensor, batch: int = 1000) -> int:
    """Return how many samples a model classifies correctly."""
    model.eval()
    right = 0
    for start in range(0, len(x), batch):
        right += int((model(x[start : start + batch]).argmax(1) == y[start : start + batch]).sum())
    model.train()
    return right


@dataclass
class Rounds:
    """When each round was over, and how good its model was.

    Attributes:
        moments: Seconds since this was made.
        accuracies: Of the global model on the test images.
    """

    moments: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    _begun: float = field(default_factory=time.perf_counter)

    def done(self, accuracy: float) -> None:
        """Take down that a round is over."""
        self.moments.append(time.perf_counter() - self._begun)
        self.accuracies.append(accuracy)


def run_driver(drive: Callable[[Path, int, int, Rounds], None]) -> None:
    """Run a driver by the words of its command line, and tell what it took."""
    folder, rounds, processes = sys.argv[1:4]
    took = Rounds()
    drive(Path(folder), int(rounds), int(processes), took)
    if os.environ.get("RANK", "0") != "0":  # one of several that do the same speaks for all
        return
    print(json.dumps({"moments": took.moments, "accuracies": took.accuracies}), flush=True)
