"""Centralized clients: one model for each architecture, trained on all samples.

The model after r rounds depends on the scenario alone. So every process trains its own copy up to the round
of each request, and results do not depend on processes or participation.
"""

from collections.abc import Sequence
from math import nan

import numpy as np
from torch import Tensor, nn

from fedkd.clients.local.network_trainer import NetworkTrainer
from fedkd.clients.local.train_jobs import round_optimizer
from fedkd.clients.local_samples import LocalSamples
from fedkd.clients.poison import poison_of
from fedkd.clients.shared_network import SharedModel
from fedkd.clients.trainer import Trained, Trainee
from fedkd.data import FederatedData
from fedkd.fusion import Arrays
from fedkd.plan import Plan
from fedkd.randomness import derive_seed, torch_generator
from fedkd.scenario import ClientGroup, Scenario
from fedkd.storage import add_prefix, strip_prefix
from fedkd.training import (
    Training,
    TrainingHits,
    TrainJob,
    count_correct,
    load_weights,
    majority_class_count,
    task_of,
    weights_of,
)

WEIGHTS = "weights/"
ROUNDS = "pooled_rounds"
LOSS = "pooled_loss"


class CentralizedModel(SharedModel):
    """One architecture's model and the number of rounds of its training.

    Args:
        samples: Inputs `[S, *input_shape]` and labels `[S]` of all clients, on the network's device.
        first: The first client of this architecture, whose draws the model takes.
    """

    def __init__(
        self, network: nn.Module, samples: tuple[Tensor, Tensor], scenario: Scenario, first: int
    ) -> None:
        super().__init__(network)
        self.samples = samples
        self._scenario, self._first = scenario, first
        self._initial = weights_of(network)
        self._rounds, self._loss = 0, nan
        self._task = task_of(scenario.data)
        self._guessing = majority_class_count(samples[1].cpu()) if self._task.counts else 0
        self.last_hits: TrainingHits | None = None

    def advance(self, round: int) -> Training[float]:
        """Bring the model to the end of a round, and return that round's mean loss.

        Missing rounds are trained in order. A request for a past round, by another run of the process,
        restarts the model.
        """
        if round < self._rounds:
            load_weights(self.network, self._initial)
            self._rounds, self._loss = 0, nan
        while self._rounds < round:
            result = yield self._job(self._rounds + 1)
            self._rounds, self._loss = self._rounds + 1, result.loss
            self.last_hits = result.hits
        return self._loss

    def _job(self, round: int) -> TrainJob:
        scenario, training = self._scenario, self._scenario.training
        draws = {"client": self._first, "round": round}
        return TrainJob(
            self.network,
            self.samples,
            self._loss_of_batch,
            round_optimizer(scenario, training.lr, round),
            training.local_epochs,
            training.batch_size,
            generator=torch_generator(scenario.seed, "train-batches", **draws),
            seed=derive_seed(scenario.seed, "train", **draws),
            autocast=training.autocast,
            scored_loss=self._scored_loss if self._task.counts else None,
            guessing=self._guessing,
        )

    def _loss_of_batch(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return self._task.loss(model(inputs), labels)

    def _scored_loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(inputs)
        return self._task.loss(logits, labels), count_correct(logits, labels)

    def state(self) -> dict[str, np.ndarray]:
        progress = {ROUNDS: np.array(self._rounds, np.int64), LOSS: np.array(self._loss, np.float64)}
        return progress | add_prefix(WEIGHTS, weights_of(self.network))

    def restore(self, arrays: Arrays) -> None:
        """Restore a state, unless another client has brought the model as far already."""
        if int(arrays[ROUNDS]) > self._rounds:
            load_weights(self.network, strip_prefix(WEIGHTS, arrays))
            self._rounds, self._loss = int(arrays[ROUNDS]), float(arrays[LOSS])


def first_alike(groups: Sequence[ClientGroup], client: int) -> int:
    """Return the first client with the model and arguments of `client`; `groups` has N entries."""
    own = groups[client]
    return next(n for n, other in enumerate(groups) if other.architecture == own.architecture)


def all_samples_of(scenario: Scenario, data: FederatedData) -> tuple[np.ndarray, np.ndarray]:
    """Return all clients' training samples `[S, *input_shape]` and labels `[S]`, in client order."""
    shards = [data.client(n) for n in range(data.num_clients)]
    labels = []
    for n, own in enumerate(shards):
        poison = poison_of(scenario, n, data.label_distribution)
        labels.append(own.train_y if poison is None else poison.labels(own.train_y, own.classes))
    return np.concatenate([own.train_x for own in shards]), np.concatenate(labels)


class CentralizedTrainer(NetworkTrainer):
    """Trainer of the centralized model of a client's architecture."""

    def __init__(self, plan: Plan, index: int, samples: LocalSamples, model: CentralizedModel) -> None:
        super().__init__(plan, index, samples, model)
        self._centralized = model

    def train(self, client: Trainee, proximal_mu: float = 0.0) -> Training[Trained]:
        """Bring the centralized model to the end of the round and return its mean loss."""
        loss = yield from self._centralized.advance(client.round)
        return Trained(loss, self._centralized.last_hits)

    def catch_up(self, round: int) -> Training[None]:
        """Bring the centralized model to a round's end, also for clients that were not sampled."""
        yield from self._centralized.advance(round)

    def model_state(self) -> dict[str, np.ndarray]:
        """Return the centralized model's weights and progress, for other processes."""
        return self._centralized.state()

    def restore_model(self, arrays: Arrays) -> None:
        self._centralized.restore(arrays)
