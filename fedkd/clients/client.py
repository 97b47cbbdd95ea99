"""One participant of the federation: samples, trainer, stream, evaluator and uploads.

Messages and engines are outside; `fedkd.federation.apps.client_app` puts a client behind Flower.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from fedkd.clients.evaluation.evaluator import Evaluator
from fedkd.clients.evaluation.fusion_effect import GuidanceEffect
from fedkd.clients.local.local_loss import LastGuidance
from fedkd.clients.local.network_trainer import NetworkTrainer
from fedkd.clients.local.task_stream import TaskStream
from fedkd.clients.local_samples import LocalSamples
from fedkd.clients.poison import Poison
from fedkd.clients.strategy_view import StrategyView
from fedkd.clients.trainer import Trainer
from fedkd.clients.upload.stages import encode, upload_stages
from fedkd.fusion import (
    Arrays,
    Kind,
    ReceivedGuidance,
    check_arrays,
    objective_of,
    replaces_predictor,
    upload_kinds,
)
from fedkd.plan import Plan
from fedkd.storage import add_prefix, strip_prefix
from fedkd.training import Training, TrainingHits

KEPT = "kept/"
REHEARSED = "rehearsed/"
MEMORY = "memory/"
APPLIED_ROUND = "applied_round"
EFFECT = "effect/"


class Client(StrategyView):
    """Train, upload knowledge, learn from guidance, evaluate.

    Every draw derives from (seed, purpose, client, round). So the state between two messages consists of the
    states of the parts, the strategy's arrays, and the round of the last guidance. Trainings are coroutines
    of jobs (see `fedkd.training.executor`), so that several clients can train together. `poison` is None for
    an honest client, `stream` is None without tasks.

    Attributes:
        evaluated: True if its accuracy before fusion is measured.
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
        super().__init__(plan, index, samples, trainer, stream)
        self.evaluated = True
        self.applied_round = -1  # of the last guidance; a strategy's initial guidance is of round 0
        self.last_hits: TrainingHits | None = None
        self.effect = GuidanceEffect()
        self.kappa = 0.0
        self._stages = upload_stages(self.scenario.fusion, poison)

    @property
    def evaluator(self) -> Evaluator:
        return Evaluator(self)

    @property
    def workplace(self) -> object:
        """The process's shared model, or the client itself; only one training at a time may use it."""
        shared = self.trainer.shared if isinstance(self.trainer, NetworkTrainer) else None
        return self if shared is None else shared

    @property
    def guidance_changes_predictions(self) -> bool:
        """True if guidance changes the client's predictions as soon as it arrives."""
        return not self.strategy.capabilities.uses_local_loss or replaces_predictor(self.strategy)

    @property
    def num_train_samples(self) -> int:
        """Number of the client's training samples, with those held out for early stopping."""
        return len(self.data.train_y)

    def prediction_threads(self, lanes: int) -> AbstractContextManager[None]:
        """Predict on this number of threads while the block runs, if processors are idle."""
        trainer = self.trainer
        return trainer.prediction_threads(lanes) if isinstance(trainer, NetworkTrainer) else nullcontext()

    def at_guidance(self) -> Client:
        """Return the strategy's view of the client, in the round of the last guidance."""
        return self.at(self.applied_round)

    # Messages -----------------------------------------------------------------------------------------

    def enter(self, round: int) -> None:
        """Move on to a round's task, before guidance; independent of the strategy."""
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
        check_arrays(arrays, f"the result of `upload` of '{self.scenario.fusion.strategy}'")
        self.fit = None  # its initial weights are no longer needed
        return self.sent(arrays, self.strategy.kinds_of(arrays), round)

    def sent(
        self, arrays: dict[str, np.ndarray], kinds: Mapping[str, Kind], round: int
    ) -> dict[str, np.ndarray]:
        """Return arrays of some kinds after the client's half of all upload stages."""
        return encode(self._stages, arrays, kinds, lambda purpose: self._draws.numpy(purpose, round))

    def sketch(self, round: int, bases: Arrays) -> dict[str, np.ndarray]:
        """Return sketches of the present task past all stages (see `TaskStream.sketch`)."""
        found = {} if self.stream is None else self.stream.sketch(bases)
        return self.sent(found, upload_kinds(found), round)

    def learn(self, guidance: Arrays, round: int) -> Training[None]:
        """Apply the guidance of a round; that of a round already applied is ignored."""
        if round <= self.applied_round:
            return
        yield from self.trainer.pretrain()
        self.applied_round, guidance = round, ReceivedGuidance(guidance)
        if self.strategy.capabilities.uses_local_loss:
            self.kept = guidance
            return
        self.effect.follow(guidance)
        found = self.strategy.apply(self.at(round), guidance)
        if found is not None:
            yield from self._distil(*found)

    def learn_old_task(self, task: int, guidance: Arrays, round: int) -> Training[None]:
        """Apply guidance of a task of the stream that the client has left."""
        return self.networks.learn_old_task(task, guidance, round)

    def end_task(self) -> None:
        """End the present task, after all training and guidance."""
        if self.stream is not None:
            self.stream.learning.end()

    def task_metrics(self, round: int) -> dict[str, float]:
        """Return accuracies on the tasks of a stream (see `TaskStream.task_metrics`)."""
        return {} if self.stream is None else self.stream.task_metrics(round, self.effect)

    # State --------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        arrays = {APPLIED_ROUND: np.array(self.applied_round, dtype=np.int64)}
        arrays |= add_prefix(EFFECT, self.effect.state())
        arrays |= self.trainer.state() | add_prefix(KEPT, self.kept)
        if self.last_guidance is not None:
            arrays |= add_prefix(REHEARSED, self.last_guidance.state())
        arrays |= add_prefix(MEMORY, self.memory)
        return arrays if self.stream is None else arrays | self.stream.state()

    def restore(self, arrays: Arrays) -> None:
        self.applied_round = int(arrays[APPLIED_ROUND])
        self.effect.restore(strip_prefix(EFFECT, arrays))
        self.kept = ReceivedGuidance(strip_prefix(KEPT, arrays))
        self.last_guidance = LastGuidance.restored(strip_prefix(REHEARSED, arrays))
        self.memory.clear()
        self.memory.update(strip_prefix(MEMORY, arrays))
        self.trainer.restore(arrays)
        if self.stream is not None:
            self.stream.restore(arrays)
