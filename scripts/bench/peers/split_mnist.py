"""Split MNIST here and in Avalanche: the same network, samples, batches and memory, whole runs in turn."""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.continual.baselines.baselines import Naive
from fedkd.continual.learner import Learner
from fedkd.continual.learning import TaskLearning
from fedkd.continual.replay.er import ExperienceReplay
from fedkd.data.dataset import Dataset
from fedkd.models.zoo.mlp import mlp
from fedkd.training.evaluate import predict_logits
from fedkd.training.executor import LoopExecutor, run_training
from fedkd.training.job import TrainJob
from fedkd.training.losses import cross_entropy
from fedkd.training.optimizer import OptimizerSpec

CLASSES = 10
LEARNERS = {"naive": Naive, "replay": ExperienceReplay}
DRIVER = Path(__file__).with_name("avalanche_split_mnist.py")
Times = dict[str, list[tuple[float, float]]]


def compare_with_avalanche(words: argparse.Namespace, source: Dataset) -> Times:
    """Return seconds and accuracies of every run, by who ran it and how.

    Args:
        words: ``peers_python``, ``peer_samples`` of every task, ``peer_epochs``, ``memory``, ``threads``,
            ``repeats``.
        source: MNIST.

    Raises:
        RuntimeError: Avalanche's run failed; with the end of what it said.
    """
    x, test = (_scaled(part) for part in (source.train_x, source.test_x))
    pairs = [np.flatnonzero(source.train_y // 2 == task)[: words.peer_samples] for task in range(5)]
    tasks = [(x[rows], torch.from_numpy(source.train_y[rows])) for rows in pairs]
    tested = test, torch.from_numpy(source.test_y)
    found: Times = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.npz"
        arrays = {f"x{task}": own[0].numpy() for task, own in enumerate(tasks)}
        arrays |= {f"y{task}": own[1].numpy() for task, own in enumerate(tasks)}
        numbers = {"batch": 32, "epochs": words.peer_epochs, "memory": words.memory, "threads": words.threads}
        np.savez(path, test_x=test.numpy(), test_y=source.test_y, tasks=len(tasks), **arrays, **numbers)
        for _ in range(words.repeats):
            for how in LEARNERS:
                found.setdefault(f"avalanche, {how}", []).append(_theirs(words.peers_python, path, how))
                found.setdefault(f"fedkd, {how}", []).append(_ours(how, tasks, tested, words))
    return found


def _scaled(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.astype(np.float32) / 255.0)


def _theirs(python: Path, path: Path, how: str) -> tuple[float, float]:
    done = subprocess.run([str(python), str(DRIVER), str(path), how], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{DRIVER.name} failed: {done.stderr.strip()[-500:]}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return told["seconds"], told["accuracy"]


def _ours(
    how: str, tasks: list[tuple[Tensor, Tensor]], test: tuple[Tensor, Tensor], words: argparse.Namespace
) -> tuple[float, float]:
    torch.manual_seed(0)
    options = {} if how == "naive" else {"memory_size": words.memory}
    learner: Learner = LEARNERS[how](**options)
    network = mlp((1, 28, 28), CLASSES, hidden=(400, 400))
    learning = TaskLearning(
        learner,
        network,
        [range(CLASSES)] * len(tasks),
        CLASSES,
        tasks.__getitem__,
        seed=0,
        client=0,
        batch_size=32,
    )
    executor = LoopExecutor()
    begun = time.perf_counter()
    for task, arrays in enumerate(tasks):
        learning.enter(task)
        job = TrainJob(
            network,
            arrays,
            _loss,
            OptimizerSpec("sgd", 0.01),
            epochs=words.peer_epochs,
            batch_size=32,
            generator=torch.Generator().manual_seed(task),
            seed=task,
            kind="split-mnist",
            replayable=True,
        )
        training = learning.fit(job, first_epoch=0, task_epochs=words.peer_epochs)
        run_training(training, executor)
        learning.end()
    seconds = time.perf_counter() - begun
    right = predict_logits(network, test[0]).argmax(dim=1) == test[1]
    return seconds, float(right.double().mean())


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)
