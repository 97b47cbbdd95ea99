"""One participant of the federation: samples, trainer, stream, evaluator and uploads.

Messages and engines are outside; `fedkd.federation.apps.client_app` puts a client behind Flower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar

import numpy as np
from torch import nn

from fedkd.clients.draws import Draws
from fedkd.clients.evaluation.evaluator import Evaluator
from fedkd.clients.evaluation.fusion_effect import GuidanceEffect
from fedkd.clients.local.local_loss import LastGuidance
from fedkd.clients.local.network_trainer import NetworkTrainer
from fedkd.clients.local.task_stream import TaskStream
from fedkd.clients.local_samples import LocalSamples
from fedkd.clients.poison import Poison
from fedkd.clients.trainer import Trainer
from fedkd.clients.upload.stages import encode, upload_stages
from fedkd.data.federated import ClientData
from fedkd.errors import UserError
from fedkd.fusion.auxiliary import OWN
from fedkd.fusion.kinds import Kind
from fedkd.fusion.local_objective import objective_of
from fedkd.fusion.prototypes.label_means import mean_of_label
from fedkd.fusion.strategy import answers_otherwise
from fedkd.fusion.validation import Received, check_arrays
from fedkd.fusion.views import Arrays, FitSummary, PrivateGradient, Supermask, Trial
from fedkd.fusion.weights.orthogonal import kinds_of
from fedkd.plan.plan import Plan
from fedkd.storage.namespaces import below, under
from fedkd.training.executor import Executor, LoopExecutor, Training, complete_alone
from fedkd.training.majority_guessing import Hits
from fedkd.training.weights import load_weights, trainable_names, weights_of

KEPT = "kept/"
REHEARSED = "rehearsed/"
MEMORY = "memory/"
APPLIED_ROUND = "applied_round"
EFFECT = "effect/"

T = TypeVar("T")


class Client:
    """Trains, uploads its knowledge, learns from guidance, evaluates.

    A strategy sees it as `fedkd.fusion.views.ClientView`, which documents those members. Every draw derives
    from (seed, purpose, client, round). So its state between two messages is that of its parts, the
    strategy's arrays and the round of the last guidance. Trainings are coroutines of jobs (see
    `fedkd.training.executor`), so that several clients can train together.

    Args:
        samples: The client's samples, the transfer set and the common test set.
        poison: None: the client is honest.
        stream: Its tasks and their learner; None: there is no stream.

    Attributes:
        evaluated: Whether its accuracy before fusion is measured.
        applied_round: Round of the last guidance.
        effect: Accuracies before and after fusion.
        kept: Guidance that shapes local training.
        last_guidance: Guidance to rehearse; None: none yet, or it is not rehearsed.
        fit: The last local training, until it is uploaded.
        last_hits: Right answers in the last training on private samples.
        kappa: κ of the last logit adjustment.
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        samples: LocalSamples,
        trainer: Trainer,
        poison: Poison | None = None,
        stream: TaskStream | None = None,
    ) -> None:
        self.plan, self.scenario, self.strategy = plan, plan.scenario, plan.strategy
        self.index, self.samples, self.trainer, self.stream = index, samples, trainer, stream
        self.executor: Executor = LoopExecutor()
        self.evaluated = True
        self.applied_round = -1  # a strategy's first words are the guidance of round 0
        self.memory: dict[str, np.ndarray] = {}
        self.kept: dict[str, np.ndarray] = {}
        self.last_guidance: LastGuidance | None = None
        self.last_hits: Hits | None = None
        self.effect = GuidanceEffect()
        self.kappa = 0.0
        self.round = 0
        self._request: np.ndarray | None = None
        self.fit: FitSummary | None = None
        self._draws = Draws(self.scenario.seed, index)
        self._stages = upload_stages(self.scenario.fusion, poison)

    @property
    def data(self) -> ClientData:
        """The data of the present task."""
        return self.samples.data

    @property
    def evaluator(self) -> Evaluator:
        """Measures the client."""
        return Evaluator(self)

    @property
    def networks(self) -> NetworkTrainer:
        """The trainer of the client's networks; a `UserError` if its model is no network."""
        return self._network_trainer("network")

    def _network_trainer(self, what: str) -> NetworkTrainer:
        if isinstance(self.trainer, NetworkTrainer):
            return self.trainer
        raise UserError(f"client {self.index}'s model has no {what} to exchange", key="fusion.strategy")

    @property
    def workplace(self) -> object:
        """The model that clients of this process share, or the client itself: one training at a time."""
        shared = self.trainer.shared if isinstance(self.trainer, NetworkTrainer) else None
        return self if shared is None else shared

    @property
    def guidance_changes_predictions(self) -> bool:
        """Whether guidance changes the client's predictions as soon as it arrives."""
        return not self.strategy.capabilities.uses_local_loss or answers_otherwise(self.strategy)

    @property
    def num_train_samples(self) -> int:
        """Number of the client's training samples, with those held out for early stopping."""
        return len(self.data.train_y)

    def complete(self, training: Training[T]) -> T:
        """Bring a training of this client to its end, and return its result."""
        return complete_alone(training, self.executor)

    def threads(self, number: int) -> AbstractContextManager[None]:
        """Compute on this number of threads while the block runs."""
        return self.trainer.threads(number)

    def prediction_threads(self, lanes: int) -> AbstractContextManager[None]:
        """Predict on this number of threads while the block runs, if processors are idle."""
        trainer = self.trainer
        return trainer.prediction_threads(lanes) if isinstance(trainer, NetworkTrainer) else nullcontext()

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return logits `[n, C]` float32 in evaluation mode."""
        return self.trainer.predict(x)

    def features(self, x: np.ndarray) -> np.ndarray:
        """Return penultimate features `[n, F]` float32 in evaluation mode."""
        return self._network_trainer("features").features(x)

    def at(self, round: int, request: np.ndarray | None = None) -> Client:
        """Return the client as its strategy sees it in a round: of the message, or of the guidance's fusion.

        `request` are the transfer samples that the server asked for; None: all of them.
        """
        self.round, self._request = round, request
        return self

    def at_guidance(self) -> Client:
        """Return the client as its strategy sees it between trainings: in the round of the last guidance."""
        return self.at(self.applied_round)

    # Members of `ClientView` --------------------------------------------------------------------------

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
        return mean_of_label(outputs, self.data.train_y, self.classes)

    def network(self, of: str = OWN) -> nn.Module:
        return self.networks.network_of(of)

    def weights(self, of: str = OWN) -> dict[str, np.ndarray]:
        return weights_of(self._network_trainer("weights").network_of(of))

    def load_weights(self, weights: Arrays, of: str = OWN) -> None:
        load_weights(self._network_trainer("weights").network_of(of), weights)

    def trainable(self) -> tuple[str, ...]:
        return trainable_names(self._network_trainer("weights").network)

    def frozen(self, weights: Arrays, of: str = OWN) -> nn.Module:
        return self._differentiable().frozen(weights, of)

    def private_gradient(self, weights: Arrays, of: Sequence[str]) -> PrivateGradient:
        return self._differentiable().private_gradient(weights, of)

    def trial(self, targets: np.ndarray, samples: np.ndarray, asked: np.ndarray) -> Trial:
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
        return TypeError(f"'{self.strategy.name}' asks for {what}, so \"{need}\" has to be among its `needs`")

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

    # Messages -----------------------------------------------------------------------------------------

    def enter(self, round: int) -> None:
        """Move on to a round's task, of which the strategy knows nothing; called before guidance."""
        if self.stream is None or not self.stream.enter(round):
            return
        self.last_guidance = None
        if "weights" not in self.strategy.capabilities.needs:
            self.kept = {}
            self.memory.clear()
        self.networks.enter_task()

    def train(self, round: int, proximal_mu: float = 0.0) -> Training[float]:
        """Train on private samples and return the mean loss (see `Trainer.train`)."""
        yield from self.trainer.pretrain()
        objective_of(self.strategy).before_training(self.at(round))
        self.effect.forget()
        trained = yield from self.trainer.train(self, proximal_mu)
        self.fit, self.last_hits = trained.fit, trained.hits
        return trained.loss

    def upload(self, round: int, request: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the upload after training, past all stages; `request` as in `at`."""
        if self.strategy.capabilities.sends == "nothing":
            return {}
        arrays = self.strategy.upload(self.at(round, request))
        check_arrays(arrays, f"what `upload` of '{self.scenario.fusion.strategy}' returned")
        self.fit = None  # the weights it began with are of no further use
        return self.sent(arrays, self.strategy.kinds_of(arrays), round)

    def sent(
        self, arrays: dict[str, np.ndarray], kinds: Mapping[str, Kind], round: int
    ) -> dict[str, np.ndarray]:
        """Return arrays of some kinds after the client's half of all stages of an upload."""
        return encode(self._stages, arrays, kinds, lambda purpose: self._draws.numpy(purpose, round))

    def sketch(self, round: int, bases: Arrays) -> dict[str, np.ndarray]:
        """Return sketches of the present task past all stages (see `TaskStream.sketch`)."""
        found = {} if self.stream is None else self.stream.sketch(bases)
        return self.sent(found, kinds_of(found), round)

    def learn(self, guidance: Arrays, round: int) -> Training[None]:
        """Apply the guidance of a round; that of a round already applied is ignored."""
        if round <= self.applied_round:
            return
        yield from self.trainer.pretrain()
        self.applied_round = round
        if self.strategy.capabilities.uses_local_loss:
            self.kept = Received(guidance)
            return
        guidance = Received(guidance)
        self.effect.follow(guidance)
        found = self.strategy.apply(self.at(round), guidance)
        if found is not None:
            yield from self._distil(*found)

    def _distil(self, targets: np.ndarray, samples: np.ndarray | None) -> Training[None]:
        """Distil targets `[K, C]` of transfer samples `[K]`, and keep them to rehearse if asked."""
        if self.plan.recipe.kd_weight > 0.0:
            self.last_guidance = LastGuidance(targets, samples, self.round)
        yield from self.trainer.distil(self, targets, samples)

    def learn_old_task(self, task: int, guidance: Arrays, round: int) -> Training[None]:
        """Apply guidance of a task of the stream that the client has left."""
        return self.networks.learn_old_task(task, guidance, round)

    def end_task(self) -> None:
        """End the present task, after all training and guidance."""
        if self.stream is not None:
            self.stream.learning.end()

    def task_metrics(self, round: int) -> dict[str, float]:
        """Return accuracies on the tasks of a stream (see `fedkd.clients.evaluation.task_metrics`)."""
        return {} if self.stream is None else self.stream.task_metrics(round, self.effect)

    def learner_report(self, round: int) -> dict[str, float]:
        """Return the learner's report at the end of a task, by metric name."""
        return {} if self.stream is None else self.stream.learner_report(round)

    def learning_curves(self) -> dict[str, list[float]]:
        """Return the accuracy after each epoch of the last training, by split, where it was measured."""
        return {} if self.stream is None else self.stream.curves

    # State --------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that `restore` needs to continue exactly here."""
        arrays = {APPLIED_ROUND: np.array(self.applied_round, dtype=np.int64)}
        arrays |= under(EFFECT, self.effect.state())
        arrays |= self.trainer.state() | under(KEPT, self.kept)
        if self.last_guidance is not None:
            arrays |= under(REHEARSED, self.last_guidance.state())
        arrays |= under(MEMORY, self.memory)
        return arrays if self.stream is None else arrays | self.stream.state()

    def restore(self, arrays: Arrays) -> None:
        """Continue from a state that `state` returned."""
        self.applied_round = int(arrays[APPLIED_ROUND])
        self.effect.restore(below(EFFECT, arrays))
        self.kept = Received(below(KEPT, arrays))
        self.last_guidance = LastGuidance.restored(below(REHEARSED, arrays))
        self.memory.clear()
        self.memory.update(below(MEMORY, arrays))
        self.trainer.restore(arrays)
        if self.stream is not None:
            self.stream.restore(arrays)
