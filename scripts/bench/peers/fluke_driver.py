"""fluke 0.8 by its public interface: shards as tensors in memory, FedAVG, one process with as many threads.

fluke trains one client after the other in one process; what it has for several of them, `fluke.distr`, asks
for two GPUs or more. So PROCESSES are threads of torch here. It is given clients' samples as for data sets
that come dealt, the same first weights, and a loader that leaves no sample out. Off is what it has besides:
models kept on disk, clients' evaluations, logging, saving, and all its metrics but accuracy. Not to be
switched off are its copies of the model for messages, its lines of progress, which show nothing where there
is no terminal, and another evaluation at the very end, which counts for the whole command alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import BATCH, LR, SEED, Rounds, as_tensors, lenet, load_images, run_driver
from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.data import DataSplitter, DummyDataContainer, FastDataLoader
from fluke.evaluation import ClassificationEval
from fluke.utils import FederationObserver, ServerObserver
from torchmetrics import Accuracy

CLASSES = 10


class Watch(FederationObserver, ServerObserver):
    """Takes down when rounds are over, and how good the global model was."""

    def __init__(self, took: Rounds) -> None:
        self._took = took
        self._accuracy = 0.0

    def server_evaluation(self, round, eval_type, evals, **_) -> None:
        """Remember the accuracy, which is told before a round ends."""
        self._accuracy = evals["accuracy"]

    def end_round(self, round) -> None:
        """Take one down."""
        self._took.done(self._accuracy)


def loader(x, y, batch: int, shuffle: bool) -> FastDataLoader:
    """Return fluke's loader of images, which leaves out a last batch of one unless it is told not to."""
    return FastDataLoader(
        *as_tensors(x, y), num_labels=CLASSES, batch_size=batch, shuffle=shuffle, skip_singleton=False
    )


def drive(folder: Path, rounds: int, processes: int, took: Rounds) -> None:
    """Run rounds of fluke's FedAVG, whose server evaluates the global model."""
    torch.set_num_threads(processes)
    images = load_images(folder)
    surroundings = FlukeENV()
    surroundings.set_seed(SEED)
    surroundings.set_device("cpu")
    surroundings.set_inmemory(True)
    surroundings.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=True)
    accuracy = Accuracy(task="multiclass", num_classes=CLASSES, top_k=1)
    surroundings.set_evaluator(ClassificationEval(eval_every=1, n_classes=CLASSES, accuracy=accuracy))
    dealt = DummyDataContainer(
        clients_tr=[
            loader(images.x[images.of(client)], images.y[images.of(client)], BATCH, shuffle=True)
            for client in range(images.clients)
        ],
        clients_te=[None] * images.clients,
        server_data=loader(images.test_x, images.test_y, batch=1000, shuffle=False),
        num_classes=CLASSES,
    )
    settings = DDict(
        model=lenet(),
        client={
            "batch_size": BATCH,
            "local_epochs": 1,
            "loss": "CrossEntropyLoss",
            "optimizer": {"name": "SGD", "lr": LR},
            "scheduler": {"name": "StepLR", "step_size": 1, "gamma": 1},
        },
        server={"weighted": True},
    )
    federation = FedAVG(images.clients, DataSplitter(dealt), settings)
    federation.set_callbacks(Watch(took))
    federation.run(rounds, 1.0)


if __name__ == "__main__":
    run_driver(drive)
