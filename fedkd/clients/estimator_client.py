"""A client whose model is no torch module: anything with `fit` and `predict_proba`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from math import nan
from typing import NoReturn

import numpy as np

from fedkd.clients.base import Client
from fedkd.clients.faults import Poison
from fedkd.clients.view import RoundView
from fedkd.data.federated import ClientData
from fedkd.errors import UserError
from fedkd.fusion.auxiliary import OWN
from fedkd.fusion.local_objective import objective_of
from fedkd.fusion.views import Arrays
from fedkd.models.estimator import EstimatorModel
from fedkd.models.incremental import IncrementalModel
from fedkd.plan.plan import Plan
from fedkd.training.chance import Hits, guessing_right
from fedkd.training.device import all_threads
from fedkd.training.evaluate import score
from fedkd.training.executor import Training

TRAINED_ROUND = "trained_round"


class EstimatorClient(Client):
    """Fits an estimator, and fits it anew when guidance arrives (see `fedkd.models.estimator`).

    Args:
        plan: What to simulate.
        index: Client index, 0-based.
        data: The client's samples, the transfer set and the common test set.
        model: The estimator behind its adapter.
        poison: What makes the client a poisoned one; None: nothing does.
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        data: ClientData,
        model: EstimatorModel | IncrementalModel,
        poison: Poison | None = None,
    ) -> None:
        super().__init__(plan, index, data, poison)
        self.model = model
        self._trained_round = 0

    def threads(self, number: int) -> AbstractContextManager[None]:
        """Do the client's arithmetic on so many threads, whichever library's, while the block runs."""
        return all_threads(number)

    def train(self, round: int, proximal_mu: float = 0.0) -> Training[float]:
        """Fit on the client's own samples and its last guidance; return the log loss on its own samples."""
        yield from ()  # an estimator fits itself: there is no job for an executor
        objective_of(self._strategy).before_training(RoundView(self, round))
        self.effect.forget()
        x, y, _ = self._training_work(1, round)
        if not len(y):
            self.last_hits = None
            return nan
        self._trained_round = round
        self._fit(x, y, round)
        found = score(self.predict(x), y)
        self.last_hits = Hits(int(found.correct.sum()), len(y), guessing_right(y))
        return found.loss

    def _fit(self, x: np.ndarray, y: np.ndarray, round: int) -> None:
        """Fit on private samples, and on the last guidance where it is rehearsed.

        An estimator that is refitted has it among what it is fitted on anyway, each sample with weight 1.
        """
        model, transfer_x, last = self.model, self.data.transfer_x, self._last_guidance
        seed = self._seed("train", round)
        if last is None or not len(last.targets):
            model.fit(x, y, transfer_x, seed)
            return
        rows = np.arange(len(transfer_x)) if last.samples is None else last.samples
        wanted = self._strategy.probabilities(last.targets)
        if isinstance(model, EstimatorModel):
            model.learn(x, y, transfer_x, rows, wanted, seed)
        else:
            model.fit(x, y, transfer_x, seed)
            model.learn(x, y, transfer_x, rows, wanted, self._seed("rehearse", round))

    def distil(self, targets: np.ndarray, samples: np.ndarray | None, round: int) -> Training[None]:
        """Refit on the samples of the last training together with the guidance, or distil it."""
        yield from ()
        rows = np.arange(len(self.data.transfer_x)) if samples is None else samples
        if self._scenario.fusion.distill_epochs == 0 or len(rows) == 0:
            return
        x, y, _ = self._training_work(1, self._trained_round)
        wanted = self._strategy.probabilities(targets)
        self.model.learn(x, y, self.data.transfer_x, rows, wanted, self._seed("distill", round))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return log-probabilities `[n, C]` float32."""
        return self.model.predict_logits(x)

    def features(self, x: np.ndarray) -> np.ndarray:
        """Refuse: there are none."""
        self._refuse("features")

    def network(self, of: str = OWN) -> NoReturn:
        """Refuse: there is none."""
        self._refuse("network")

    def weights(self, of: str = OWN) -> dict[str, np.ndarray]:
        """Refuse: there are none."""
        self._refuse("weights")

    def load_weights(self, weights: Arrays, of: str = OWN) -> None:
        """Refuse: there are none."""
        self._refuse("weights")

    def trainable(self) -> tuple[str, ...]:
        """Refuse: there are none."""
        self._refuse("weights")

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(f"client {self.index}'s model has no {what} to exchange", key="fusion.strategy")

    def model_state(self) -> dict[str, np.ndarray]:
        """Return what a refit needs."""
        return self.model.state() | {TRAINED_ROUND: np.array(self._trained_round, dtype=np.int64)}

    def restore_model(self, arrays: Arrays) -> None:
        """Refit to the state."""
        self._trained_round = int(arrays[TRAINED_ROUND])
        x, y, _ = self._training_work(1, self._trained_round)
        self.model.restore(arrays, x, y, self.data.transfer_x)
