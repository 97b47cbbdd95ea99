"""The trainer of an estimator: any classifier with `fit` and `predict_proba`."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from math import nan

import numpy as np

from fedkd.clients.draws import Draws
from fedkd.clients.local_samples import LocalSamples
from fedkd.clients.trainer import MODEL, Trained, Trainee
from fedkd.models import EstimatorModel, IncrementalModel, RegressorModel
from fedkd.plan import Plan
from fedkd.storage import add_prefix, strip_prefix
from fedkd.training import Training, TrainingHits, limit_all_threads, majority_class_count, score

TRAINED_ROUND = "trained_round"


class EstimatorTrainer:
    """Fits an estimator, and refits it when guidance arrives (see `fedkd.models.estimator`)."""

    def __init__(
        self, plan: Plan, index: int, samples: LocalSamples, model: EstimatorModel | RegressorModel
    ) -> None:
        self.model = model
        self._plan = plan
        self._strategy, self._samples = plan.strategy, samples
        self._distils = plan.scenario.fusion.distill_epochs > 0
        self._draws = Draws(plan.scenario.seed, index)
        self._trained_round = 0

    def threads(self, number: int) -> AbstractContextManager[None]:
        """Compute on this number of threads, in all libraries, while the block runs."""
        return limit_all_threads(number)

    def pretrain(self) -> Training[None]:
        """Do nothing: labelled transfer sets are for networks."""
        yield from ()

    def train(self, client: Trainee, proximal_mu: float = 0.0) -> Training[Trained]:
        """Fit on private samples and the last guidance, and return the log loss on private samples."""
        yield from ()  # an estimator has no job for an executor
        x, y, _ = self._samples.work(1, client.round)
        if not len(y):
            return Trained(nan)
        self._trained_round = client.round
        self._fit(client, x, y)
        if self._samples.data.scale is not None:
            metrics, scale = self._plan.metrics, self._samples.data.scale
            return Trained(self._plan.task.measure(metrics, self.predict(x), y, scale).loss)
        found = score(self.predict(x), y)
        return Trained(found.loss, TrainingHits(int(found.correct.sum()), len(y), majority_class_count(y)))

    def _fit(self, client: Trainee, x: np.ndarray, y: np.ndarray) -> None:
        """Fit on private samples, and on the last guidance if it is rehearsed.

        A refitted estimator has that guidance among its samples in any case, each with weight 1.
        """
        model, transfer_x = self.model, client.data.transfer_x
        last, round = client.last_guidance, client.round
        seed = self._draws.seed_of("train", round)
        if last is None or not len(last.targets):
            model.fit(x, y, transfer_x, seed)
            return
        rows = np.arange(len(transfer_x)) if last.samples is None else last.samples
        wanted = self._strategy.probabilities(last.targets)
        if isinstance(model, IncrementalModel):
            model.fit(x, y, transfer_x, seed)
            seed = self._draws.seed_of("kd_weight", round)
        model.learn(x, y, transfer_x, rows, wanted, seed)

    def distil(self, client: Trainee, targets: np.ndarray, samples: np.ndarray | None) -> Training[None]:
        yield from ()
        transfer_x = client.data.transfer_x
        rows = np.arange(len(transfer_x)) if samples is None else samples
        if not self._distils or len(rows) == 0:
            return
        x, y, _ = self._samples.work(1, self._trained_round)
        wanted = self._strategy.probabilities(targets)
        self.model.learn(x, y, transfer_x, rows, wanted, self._draws.seed_of("distill", client.round))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return log-probabilities `[n, C]` float32."""
        return self.model.predict_logits(x)

    def state(self) -> dict[str, np.ndarray]:
        trained = {TRAINED_ROUND: np.array(self._trained_round, dtype=np.int64)}
        return add_prefix(MODEL, self.model.state() | trained)

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Refit to the state."""
        arrays = strip_prefix(MODEL, arrays)
        self._trained_round = int(arrays[TRAINED_ROUND])
        x, y, _ = self._samples.work(1, self._trained_round)
        self.model.restore(arrays, x, y, self._samples.data.transfer_x)
