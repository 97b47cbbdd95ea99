"""Evaluation of a client: on its own test samples and the common ones, before and after fusion."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from fedkd.clients.guidance_effect import SPLITS, Split
from fedkd.clients.own_prior import leaning, log_shares, smallest_kappa
from fedkd.clients.torch_client import NetworkTrainer
from fedkd.fusion.auxiliary import networks_of
from fedkd.fusion.local_objective import objective_of
from fedkd.fusion.views import Arrays
from fedkd.training.evaluate import Score, score

if TYPE_CHECKING:
    from fedkd.clients.base import Client


class Evaluator:
    """Measures a client.

    It keeps nothing: figures from one message to the next are in the client's `effect`.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def evaluate(self, split: Split) -> Score:
        """Evaluate on the client's own test split (`local`) or on the common test set (`global`)."""
        x, y = self._tests(split)
        return score(self.answer(x) if len(y) else np.empty((0, self._client.classes)), y)

    def _tests(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        data = self._client.data
        return (data.test_x, data.test_y) if split == "local" else (data.global_x, data.global_y)

    def answer(self, x: np.ndarray) -> np.ndarray:
        """Return the logits `[n, C]` that evaluations take for the client's, of its present task."""
        logits, self._client.kappa = self.leaning(self._answer, x)
        return logits

    def leaning(self, answer: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> tuple[np.ndarray, float]:
        """Return logits `[n, C]` with the logit adjustment of own classes, and its κ."""
        client = self._client
        kappa = client.scenario.fusion.own_prior
        if kappa == 0.0:
            return answer(x), 0.0
        log_prior = log_shares(client.private_labels(), client.classes)
        if kappa == "auto":
            kept, labels = client.samples.kept_apart()
            kappa = smallest_kappa(answer(kept), labels, log_prior) if len(labels) else 0.0
        return leaning(answer(x), kappa, log_prior), kappa

    def _answer(self, x: np.ndarray) -> np.ndarray:
        """Return the logits `[n, C]` that evaluations take for the client's."""
        client, strategy = self._client, self._client.strategy
        by_learner = client.stream is not None and client.stream.learning.learner.overrides("predict")
        if client.kept and strategy.capabilities.infers_from_guidance and not by_learner:
            return objective_of(strategy).infer(client.features(x), client.kept)
        if client.stream is not None:
            return client.stream.tests.present(x)
        network = self.predictor()
        if network is None:
            return client.predict(x)
        logits, wanted = client.networks.logits_of(network, x), (len(x), client.classes)
        if logits.shape != wanted:
            told = f"what `predictor` of '{strategy.name}' returned made {list(logits.shape)}"
            raise TypeError(f"{told} of {len(x)} samples; must be {list(wanted)}")
        return logits

    def predictor(self) -> nn.Module | None:
        """Return the network that the strategy has evaluations ask; None: they ask the client's model.

        Raises:
            TypeError: The strategy returned something else.
        """
        strategy = self._client.strategy
        found = networks_of(strategy).predictor(self._client.at_guidance())
        if found is None or isinstance(found, nn.Module):
            return found
        told = f"`predictor` of '{strategy.name}' returned a {type(found).__name__}"
        raise TypeError(f"{told}; must be a torch.nn.Module, or None")

    def evaluate_models(self, split: Split, answered: Score) -> dict[str, Score]:
        """Evaluate each of the models that the strategy tells apart.

        Args:
            split: As for `evaluate`.
            answered: The score there of the one that answers.
        """
        strategy, found = self._client.strategy, {}
        x, y = self._tests(split)
        for name in networks_of(strategy).eval_models:
            if name == networks_of(strategy).answering_model or not len(y):
                found[name] = answered
                continue
            network = networks_of(strategy).eval_model(self._client.at_guidance(), name)
            logits, _ = self.leaning(partial(self._client.networks.logits_of, network), x)
            found[name] = score(logits, y)
        return found

    def evaluate_after_fusion(self, split: Split, round: int) -> Score:
        """Evaluate after the fusion of a round; once a process where all clients answer alike."""
        client, trainer = self._client, self._client.trainer
        if not isinstance(trainer, NetworkTrainer):
            return self.evaluate(split)
        client.complete(trainer.catch_up(round))
        measured, what = None if trainer.shared is None else trainer.shared.measured, "global"
        if client.stream is not None:
            measured, what = client.stream.measured, f"score of task {client.stream.task}"
        # With a prior of its own, each client answers otherwise with the same weights.
        alike = client.stream is not None or client.scenario.fusion.own_prior == 0.0
        if measured is None or split == "local" or not alike:
            return self.evaluate(split)
        return measured.once(round, what, lambda: self.evaluate("global"))

    def shared_predictions(self) -> AbstractContextManager[None]:
        """Predict the same samples as the same task but once while the block runs."""
        stream = self._client.stream
        return nullcontext() if stream is None else stream.tests.shared_predictions()

    def measure_before_fusion(self, round: int, *, changes: bool = True) -> None:
        """Take down that guidance comes in this round, and how the client does without it.

        Args:
            changes: Whether it changes the model at once: else there is nothing to measure.
        """
        client = self._client
        with self.shared_predictions():
            scores = {split: self.evaluate(split) for split in SPLITS} if changes else None
            client.effect.begin(round, scores)
            for split, found in (scores or {}).items():
                for name, own in self.evaluate_models(split, found).items():
                    client.effect.begin_model(name, split, own.accuracy)
            if isinstance(client.trainer, NetworkTrainer) and client.trainer.shared is not None:
                client.effect.forget_flips()  # another model takes its place: nobody follows anybody
            if changes and client.stream is not None:
                client.stream.measure_before(round, client.effect)

    def fidelity(self, round: int, after: Score) -> dict[str, float]:
        """Return how far the client now follows its guidance (see `GuidanceEffect.fidelity`).

        Args:
            round: 1-based.
            after: Its score on the common test set now.
        """
        return self._client.effect.fidelity(round, after.correct, self._follow)

    def _follow(self, guidance: Arrays) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the client's logits where guidance has targets, and the probabilities asked for."""
        client = self._client
        found = client.strategy.targets_of(client.at_guidance(), guidance)
        if found is None:
            return None
        targets, samples = found
        logits = client.predict(client.data.transfer_x[slice(None) if samples is None else samples])
        return logits, client.strategy.probabilities(targets)

    def choices(self) -> dict[str, float]:
        """Return what the client has chosen for itself, by metric name, as of the last evaluation."""
        client = self._client
        own = {"own_prior": client.kappa} if client.scenario.fusion.own_prior == "auto" else {}
        return own | dict(client.strategy.client_metrics(client.at_guidance()))
