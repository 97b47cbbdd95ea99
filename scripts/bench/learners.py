"""How long a training step takes under learners that shape it, beside a plain step of the same network.

    python scripts/bench/learners.py [--ways cuber-R3 er] [--tasks 4] [--samples 6000] [--peers-python PYTHON]

Permuted MNIST as the papers on gradient projection have it: an MLP 784-100-100-10 without biases, batches of
10, SGD. Every learner goes through the tasks before the last one on a part of their samples; then all take
epochs of the same number of steps in the last task, in turn, several times over. Printed are medians of a
step, and the paired ratios to plain SGD in the same process: to its steps as they are written, and to its
steps when they are replayed as well. CUBER is shown with all old tasks in each of its regimes: R1 (nothing
related), R2 (scaled), R3 (scaled, and old weights may change), and with R3 in the first layer, R2 elsewhere.

With `--peers-python`, an interpreter that has Avalanche, Split MNIST is trained there and here too, by the
same network with the same number of samples a step, and whole runs are compared, evaluations left out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from peers.split_mnist import compare_with_avalanche
from torch import Tensor, nn

from fedkd.continual.baselines.baselines import Naive
from fedkd.continual.learner import Learner
from fedkd.continual.learning import TaskLearning
from fedkd.continual.replay.er import ExperienceReplay
from fedkd.continual.subspace.cuber import CUBER
from fedkd.continual.subspace.gpm import GPM
from fedkd.continual.subspace.layer_memory import layer_memories
from fedkd.continual.subspace.trgp import TRGP
from fedkd.data.registry import load_dataset
from fedkd.data.request import SourceRequest, data_root_folder
from fedkd.errors import told_in_one_line
from fedkd.models.zoo.mlp import mlp
from fedkd.training.device import prepare_model
from fedkd.training.executor import LoopExecutor, run_training
from fedkd.training.fast.replay import Replays
from fedkd.training.job import TrainJob
from fedkd.training.losses import cross_entropy
from fedkd.training.optimizer import OptimizerSpec

CLASSES = 10
THRESHOLDS = [0.95, 0.99, 0.99]

ONE_LAYER = "cuber-R3, one layer"
"""The way whose old tasks are in R3 in the first layer, and moved to R2 in the others."""
LEARNERS: dict[str, Callable[[], Learner]] = {
    "er": ExperienceReplay,
    "gpm": lambda: GPM(threshold=THRESHOLDS),
    "trgp": lambda: TRGP(threshold=THRESHOLDS, relatedness=0.2),
    "cuber": lambda: CUBER(threshold=THRESHOLDS),
    "cuber-R1": lambda: CUBER(threshold=THRESHOLDS, relatedness=1.0),
    "cuber-R2": lambda: CUBER(threshold=THRESHOLDS, relatedness=0.0, correlation=1.1),
    "cuber-R3": lambda: CUBER(threshold=THRESHOLDS, relatedness=0.0, correlation=-1.0),
    ONE_LAYER: lambda: CUBER(threshold=THRESHOLDS, relatedness=0.0, correlation=-1.0),
}
TAKEN, REPLAYED = "plain, taken", "plain, replayed"
Task = tuple[Tensor, Tensor]


def permuted_tasks(words: argparse.Namespace) -> list[Task]:
    """Return samples ``[n, 1, 28, 28]`` and labels ``[n]`` of every task, the first one's as they are."""
    source = load_dataset(SourceRequest("mnist", data_root_folder(words.root)))
    x = torch.from_numpy(source.train_x[: words.samples].astype(np.float32) / 255.0)
    x = (x - x.mean()) / x.std()
    y = torch.from_numpy(source.train_y[: words.samples])
    pixels = x.flatten(1)
    draws = torch.Generator().manual_seed(0)
    orders = [
        torch.arange(784) if task == 0 else torch.randperm(784, generator=draws)
        for task in range(words.tasks)
    ]
    return [(pixels[:, order].view_as(x).contiguous(), y) for order in orders]


class Way:
    """A learner at the start of the last task, which it can take epochs of.

    Args:
        learner: How.
        tasks: Samples and labels of all tasks; the earlier ones are gone through on `words.earlier` of them.
        words: The options.
        replays: Whether steps may be replayed.
    """

    def __init__(
        self, learner: Learner, tasks: Sequence[Task], words: argparse.Namespace, *, replays: bool
    ) -> None:
        torch.manual_seed(0)
        network = prepare_model(mlp((1, 28, 28), CLASSES, hidden=(100, 100), bias=False), "cpu")
        self._tasks = [tuple(part[: words.earlier] for part in task) for task in tasks[:-1]] + [tasks[-1]]
        self._words = words
        self._executor = LoopExecutor(None if replays else Replays(patience=sys.maxsize))
        self._learning = TaskLearning(
            learner,
            network,
            [range(CLASSES)] * len(tasks),
            CLASSES,
            lambda task: self._tasks[task],
            seed=0,
            client=0,
            batch_size=words.batch_size,
        )
        for task in range(len(tasks) - 1):
            self._learning.enter(task)
            self.epoch()
            self._learning.end()
        self._learning.enter(len(tasks) - 1)
        self._epochs = 0

    def epoch(self) -> float:
        """Take an epoch of the present task and return the seconds a step."""
        x, y = self._tasks[self._learning.task]
        job = TrainJob(
            self._learning.context.network,
            (x, y),
            _loss,
            OptimizerSpec("sgd", 0.01),
            epochs=1,
            batch_size=self._words.batch_size,
            generator=torch.Generator().manual_seed(self._learning.task),
            seed=0,
            kind="bench",
            replayable=True,
        )
        clock = time.process_time if self._words.clock == "cpu" else time.perf_counter
        begun = clock()
        result = run_training(self._learning.fit(job, first_epoch=0, task_epochs=1), self._executor)
        return (clock() - begun) / result.steps

    def leave_one_layer(self) -> None:
        """Move what is in R3 in any layer but the first to R2, for CUBER."""
        learner = self._learning.learner
        assert isinstance(learner, CUBER)
        for memory in layer_memories(self._learning.context)[1:]:
            learner.move_to_forward(memory, memory.flexible)

    def regimes(self) -> str:
        """Return how many layers of the network have old tasks in which regimes now, for CUBER."""
        report = self._learning.learner.report(self._learning.context)
        now = [int(value) for name, value in report.items() if name.startswith("regime/")]
        return ", ".join(f"{now.count(regime)} in R{regime}" for regime in (1, 2, 3) if regime in now)


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def compare(words: argparse.Namespace) -> None:
    """Time every way and print a row of each."""
    tasks = permuted_tasks(words)
    ways = {
        TAKEN: Way(Naive(), tasks, words, replays=False),
        REPLAYED: Way(Naive(), tasks, words, replays=True),
        **{name: Way(LEARNERS[name](), tasks, words, replays=not words.taken) for name in words.ways},
    }
    if ONE_LAYER in ways:
        ways[ONE_LAYER].leave_one_layer()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(words.repeats + 1):
        for name, way in ways.items():
            seconds = way.epoch()
            if repeat:  # the first warms up, and records
                times[name].append(seconds)
    print("| steps | ms a step | × plain SGD, taken | × plain SGD, replayed | old tasks, all layers |")
    print("| --- | --: | --: | --: | --- |")
    for name, way in ways.items():
        cells = [f"{1000 * statistics.median(times[name]):.3f}"]
        cells += [ratio(times[name], times[other]) for other in (TAKEN, REPLAYED)]
        print(f"| {name} | {' | '.join(cells)} | {way.regimes()} |", flush=True)


def ratio(times: Sequence[float], others: Sequence[float]) -> str:
    """Return the median and the range of paired ratios."""
    found = sorted(one / other for one, other in zip(times, others, strict=True))
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def compare_with_peers(words: argparse.Namespace) -> None:
    """Print a table of whole runs here and elsewhere."""
    found = compare_with_avalanche(words, load_dataset(SourceRequest("mnist", data_root_folder(words.root))))
    print("\n| run of Split MNIST | seconds | accuracy (%) | Avalanche's time ÷ this |")
    print("| --- | --: | --: | --: |")
    for name, runs in found.items():
        seconds, accuracies = ([run[place] for run in runs] for place in (0, 1))
        theirs = [run[0] for run in found[f"avalanche, {name.partition(', ')[2]}"]]
        cells = [f"{statistics.median(seconds):.2f}", f"{100 * statistics.median(accuracies):.1f}"]
        print(f"| {name} | {' | '.join(cells)} | {ratio(theirs, seconds)} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=list(LEARNERS), default=list(LEARNERS))
    parser.add_argument("--tasks", type=int, default=4, help="the last one is timed")
    parser.add_argument("--samples", type=int, default=6000, help="of the last task")
    parser.add_argument("--earlier", type=int, default=1000, help="samples of each earlier task")
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: of this process alone")
    parser.add_argument("--taken", action="store_true", help="learners' steps are never replayed")
    parser.add_argument("--root", help="of the data sets; absent: $FEDKD_DATA, else the user's cache")
    parser.add_argument("--peers-python", type=Path, help="an interpreter with Avalanche, for Split MNIST")
    parser.add_argument("--peer-samples", type=int, default=10_000, help="of each of the five tasks there")
    parser.add_argument("--peer-epochs", type=int, default=1)
    parser.add_argument("--memory", type=int, default=1000, help="samples that replay remembers there")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    machine = platform.processor() or platform.machine()
    print(f"torch {torch.__version__} on {machine}, {words.threads} thread(s)\n")
    compare(words)
    if words.peers_python is not None:
        compare_with_peers(words)


if __name__ == "__main__":
    with told_in_one_line():
        main()
