"""pfl 0.6 by its public interface: users as tensors in memory, FederatedAveraging, processes under torchrun.

Users go through their samples in order: pfl does not shuffle them.
"""

from __future__ import annotations

import os
from pathlib import Path

import multiprocess
import numpy as np
import torch
from common import BATCH, LR, SEED, Images, Rounds, as_tensors, hits, lenet, load_images, run_driver
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn


class Net(nn.Module):
    """LeNet with what pfl asks of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.criterion = lenet(), nn.CrossEntropyLoss()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.body(x)

    def loss(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:
        """Return the mean loss of a batch."""
        return self.criterion(self.body(x), y)

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor, eval: bool = True) -> dict[str, Weighted]:
        """Return the accuracy on a batch."""
        return {"accuracy": Weighted(int((self.body(x).argmax(1) == y).sum()), len(y))}


class Watch(TrainingProcessCallback):
    """Takes down when rounds are over."""

    def __init__(self, took: Rounds) -> None:
        self._took = took

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Take one down."""
        self._took.done(0.0)
        return False, Metrics()


def users(images: Images) -> FederatedDataset:
    """Return all clients as pfl's users, each known by its number of samples."""
    made = {
        str(client): PyTorchTensorDataset(
            as_tensors(images.x[images.of(client)], images.y[images.of(client)]), user_id=str(client)
        )
        for client in range(images.clients)
    }
    sampler = get_user_sampler("minimize_reuse", list(made))
    sizes = {user: len(dataset) for user, dataset in made.items()}
    return FederatedDataset(made.__getitem__, sampler, sizes)


def drive(folder: Path, rounds: int, processes: int, took: Rounds) -> None:
    """Run rounds of pfl's federated averaging; the model of all but the last is evaluated untold."""
    torch.set_num_threads(1)
    np.random.seed(SEED)  # noqa: NPY002, pfl draws users from it: the same ones in all processes
    images, net = load_images(folder), Net()
    test = as_tensors(images.test_x, images.test_y)
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    data = users(images)
    evaluation = NNEvalHyperParams(local_batch_size=1000)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=images.clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=BATCH),
        evaluation,
        [CentralEvaluationCallback(PyTorchTensorDataset(test), evaluation), Watch(took)],
        send_metrics_to_platform=False,
    )
    took.accuracies[-1] = hits(net, *test) / len(images.test_y)


if __name__ == "__main__":
    run_driver(drive)
    for child in multiprocess.active_children():  # its sampler does not end by itself
        child.kill()
    os._exit(0)
