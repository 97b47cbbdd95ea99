"""A strategy's view of a client."""

from collections.abc import Sequence
from typing import Literal, Self, TypeVar

import numpy as np
from torch import nn

from fedkd.clients.draws import Draws
from fedkd.clients.local.local_loss import LastGuidance
from fedkd.clients.local.network_trainer import NetworkTrainer
from fedkd.clients.local.task_stream import TaskStream
from fedkd.clients.local_samples import LocalSamples
from fedkd.clients.trainer import Trainer
from fedkd.data import ClientData
from fedkd.errors import UserError
from fedkd.fusion import OWN_NETWORK, Arrays, FitSummary, PrivateGradient, Supermask, TrialLogits, label_means
from fedkd.plan import Plan
from fedkd.training import (
    Executor,
    LoopExecutor,
    Training,
    exchanged_weights,
    frozen_copy,
    gradient_function,
    load_weights,
    run_training,
    trainable_names,
)

T = TypeVar("T")


class StrategyView:
    """The members of `fedkd.fusion.views.ClientView`, documented there, and those that they need.

    Attributes:
        kept: Guidance that shapes local training.
        last_guidance: Guidance to rehearse; None: none yet, or it is not rehearsed.
        fit: The last local training, until it is uploaded.
    """

    def __init__(
        self, plan: Plan, index: int, samples: LocalSamples, trainer: Trainer, stream: TaskStream | None
    ) -> None:
        self.plan, self.scenario, self.strategy = plan, plan.scenario, plan.strategy
        self.index, self.samples, self.trainer, self.stream = index, samples, trainer, stream
        self.executor: Executor = LoopExecutor()
        self.memory: dict[str, np.ndarray] = {}
        self.kept: dict[str, np.ndarray] = {}
        self.last_guidance: LastGuidance | None = None
        self.fit: FitSummary | None = None
        self.round = 0
        self._request: np.ndarray | None = None
        self._draws = Draws(self.scenario.seed, index)

    def at(self, round: int, request: np.ndarray | None = None) -> Self:
        """Return the strategy's view in a round: of the message, or of the fusion.

        `request` are the transfer samples that the server asked for; None: all of them.
        """
        self.round, self._request = round, request
        return self

    @property
    def data(self) -> ClientData:
        return self.samples.data

    @property
    def networks(self) -> NetworkTrainer:
        """The trainer of the client's networks; an estimator raises `UserError`."""
        return self._network_trainer("network")

    def _network_trainer(self, what: str) -> NetworkTrainer:
        if isinstance(self.trainer, NetworkTrainer):
            return self.trainer
        raise UserError(f"client {self.index}'s model has no {what} to exchange", key="fusion.strategy")

    def complete(self, training: Training[T]) -> T:
        return run_training(training, self.executor)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.trainer.predict(x)

    def features(self, x: np.ndarray) -> np.ndarray:
        return self._network_trainer("features").features(x)

    @property
    def classes(self) -> int:
        return self.data.classes

    @property
    def rounds(self) -> int:
        return self.scenario.rounds

    @property
    def batch_size(self) -> int:
        return self.scenario.training.batch_size

    @property
    def last_fit(self) -> FitSummary:
        assert self.fit is not None
        return self.fit

    def logits(self) -> np.ndarray:
        x = self.data.transfer_x
        return self.predict(x if self._request is None else x[self._request])

    def private_logits(self) -> np.ndarray:
        return self.predict(self.data.train_x)

    def private_features(self) -> np.ndarray:
        return self.features(self.data.train_x)

    def private_labels(self) -> np.ndarray:
        return self.samples.labels()

    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        x, labels = self.samples.kept_apart()
        return self.predict(x) if len(labels) else np.empty((0, self.classes), dtype=np.float32), labels

    def label_counts(self) -> np.ndarray:
        return np.bincount(self.data.train_y, minlength=self.classes)

    def class_means(self, of: Literal["logits", "features"]) -> np.ndarray:
        outputs = self.private_logits() if of == "logits" else self.private_features()
        return label_means(outputs, self.data.train_y, self.classes)

    def network(self, of: str = OWN_NETWORK) -> nn.Module:
        return self.networks.network_of(of)

    def weights(self, of: str = OWN_NETWORK) -> dict[str, np.ndarray]:
        return exchanged_weights(self._network_trainer("weights").network_of(of))

    def load_weights(self, weights: Arrays, of: str = OWN_NETWORK) -> None:
        load_weights(self._network_trainer("weights").network_of(of), weights)

    def trainable(self) -> tuple[str, ...]:
        return trainable_names(self._network_trainer("weights").network)

    def frozen(self, weights: Arrays, of: str = OWN_NETWORK) -> nn.Module:
        trainer = self._differentiable()
        return trainer.as_seen(frozen_copy(trainer.network_of(of), weights))

    def private_gradient(self, weights: Arrays, of: Sequence[str]) -> PrivateGradient:
        trainer, on_device = self._differentiable(), self._differentiable().jobs.on_device
        network = frozen_copy(trainer.network, weights)
        x, y = on_device(self.data.train_x), on_device(self.private_labels())
        return gradient_function(network, trainer.as_seen(network), of, x, y, self.plan.task.loss)

    def trial(self, targets: np.ndarray, samples: np.ndarray, asked: np.ndarray) -> TrialLogits:
        return self._differentiable().trial(self, targets, samples, asked)

    def _differentiable(self) -> NetworkTrainer:
        if isinstance(self.trainer, NetworkTrainer):
            return self.trainer
        raise self._needs("a network", "gradients")

    def own_rows(self) -> np.ndarray:
        return self.samples.rows(self.round)

    def generator(self, purpose: str) -> np.random.Generator:
        return self._draws.numpy(f"strategy-{purpose}", self.round)

    def supermask(self) -> Supermask:
        found = None if self.stream is None else self.stream.supermask()
        if found is None:
            raise self._needs("masks", "masks")
        return found

    def _needs(self, what: str, need: str) -> TypeError:
        return TypeError(f"'{self.strategy.name}' uses {what}, so its `needs` must include \"{need}\"")

    @property
    def learned(self) -> tuple[int, ...]:
        return () if self.stream is None else self.stream.learned_by(self.round)

    def learner_tells(self, tasks: Sequence[int]) -> dict[str, np.ndarray]:
        return {} if self.stream is None else self.stream.learning.export_state(tasks)

    def tell_learner(self, arrays: Arrays) -> None:
        if self.stream is not None:
            self.stream.learning.import_state(arrays)

    def distil(self, targets: np.ndarray, samples: np.ndarray | None = None) -> None:
        self.complete(self._distil(targets, samples))

    def _distil(self, targets: np.ndarray, samples: np.ndarray | None) -> Training[None]:
        """Distil targets `[K, C]` of transfer samples `[K]`, and keep them to rehearse if asked."""
        if self.plan.recipe.kd_weight > 0.0:
            self.last_guidance = LastGuidance(targets, samples, self.round)
        yield from self.trainer.distil(self, targets, samples)
