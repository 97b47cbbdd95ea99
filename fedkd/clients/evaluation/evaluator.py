"""Evaluation of a client before and after fusion, and its logit adjustment."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from fedkd.clients.evaluation.fusion_effect import SPLITS, Split
from fedkd.clients.local.network_trainer import NetworkTrainer
from fedkd.fusion import Arrays, aux_networks_of, objective_of
from fedkd.training import Score, score

if TYPE_CHECKING:
    from fedkd.clients.client import Client

KAPPAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Candidates of `logit_adjustment = "auto"`, ascending."""


class Evaluator:
    """Measures a client; figures that outlast a message are in the client's `effect`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def evaluate(self, split: Split, round: int | None = None) -> Score:
        """Evaluate on the client's own test split (`local`), or on the round's part of the common test set.

        A round of None has all of it.
        """
        x, y = self._tests(split, round)
        logits = self.answer(x) if len(y) else np.empty((0, self._client.classes))
        plan = self._client.plan
        return plan.task.measure(plan.metrics, logits, y, self._client.data.scale)

    def _tests(self, split: Split, round: int | None) -> tuple[np.ndarray, np.ndarray]:
        data, plan = self._client.data, self._client.plan
        if split == "local":
            return data.test_x, data.test_y
        if data.test_sample is None or round is None or plan.test_sample(round) is None:
            return data.global_x, data.global_y
        return data.test_sample

    def answer(self, x: np.ndarray) -> np.ndarray:
        """Return the logits `[n, C]` of evaluations of the present task."""
        logits, self._client.kappa = self.leaning(self._answer, x)
        return logits

    def leaning(self, answer: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> tuple[np.ndarray, float]:
        """Return logits `[n, C]` with the logit adjustment of own classes, and its κ."""
        client = self._client
        kappa = client.scenario.fusion.logit_adjustment
        if kappa == 0.0:
            return answer(x), 0.0
        log_prior = log_shares(client.private_labels(), client.classes)
        if kappa == "auto":
            kept, labels = client.samples.kept_apart()
            kappa = smallest_kappa(answer(kept), labels, log_prior) if len(labels) else 0.0
        return leaning(answer(x), kappa, log_prior), kappa

    def _answer(self, x: np.ndarray) -> np.ndarray:
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
            told = f"the network from `predictor` of '{strategy.name}' returned {list(logits.shape)}"
            raise TypeError(f"{told} logits; must be {list(wanted)}")
        return logits

    def predictor(self) -> nn.Module | None:
        """Return the network that the strategy evaluates; None: the client's model."""
        strategy = self._client.strategy
        found = aux_networks_of(strategy).predictor(self._client.at_guidance())
        if found is None or isinstance(found, nn.Module):
            return found
        told = f"`predictor` of '{strategy.name}' returned a {type(found).__name__}"
        raise TypeError(f"{told}; must be a torch.nn.Module, or None")

    def evaluate_models(self, split: Split, answered: Score, round: int | None = None) -> dict[str, Score]:
        """Evaluate each model of the strategy; `answered` is the score of the answering one."""
        strategy, found = self._client.strategy, {}
        x, y = self._tests(split, round)
        for name in aux_networks_of(strategy).eval_models:
            if name == aux_networks_of(strategy).answering_model or not len(y):
                found[name] = answered
                continue
            network = aux_networks_of(strategy).eval_model(self._client.at_guidance(), name)
            logits, _ = self.leaning(partial(self._client.networks.logits_of, network), x)
            found[name] = score(logits, y)
        return found

    def evaluate_after_fusion(self, split: Split, round: int) -> Score:
        """Evaluate after fusion; once per process if all clients have the same answers."""
        client, trainer = self._client, self._client.trainer
        if not isinstance(trainer, NetworkTrainer):
            return self.evaluate(split, round)
        client.complete(trainer.catch_up(round))
        measured, what = None if trainer.shared is None else trainer.shared.measured, "global"
        if client.stream is not None:
            measured, what = client.stream.measured, f"score of task {client.stream.task}"
        # With logit adjustment, clients with the same weights have different answers.
        alike = client.stream is not None or client.scenario.fusion.logit_adjustment == 0.0
        if measured is None or split == "local" or not alike:
            return self.evaluate(split, round)
        return measured.once(round, what, lambda: self.evaluate("global", round))

    def shared_predictions(self) -> AbstractContextManager[None]:
        stream = self._client.stream
        return nullcontext() if stream is None else stream.tests.shared_predictions()

    def measure_before_fusion(self, round: int, *, changes: bool = True) -> None:
        """Record the arrival of guidance in this round, and the scores before it if it changes the model."""
        client = self._client
        with self.shared_predictions():
            scores = {split: self.evaluate(split, round) for split in SPLITS} if changes else None
            models = {
                f"{name}_{split}": own.accuracy
                for split, found in (scores or {}).items()
                for name, own in self.evaluate_models(split, found, round).items()
            }
            client.effect.begin(round, scores, models, replaces=client.workplace is not client)
            if changes and client.stream is not None:
                client.stream.measure_before(round, client.effect)

    def fidelity(self, round: int, after: Score) -> dict[str, float]:
        """Return the agreement with the guidance, given the score on the common test set after it."""
        follow = self._follow if self._client.plan.task.counts else None
        return self._client.effect.fidelity(round, after.correct, follow)

    def _follow(self, guidance: Arrays) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the logits on the samples of guidance, and its target probabilities; None: no targets."""
        client = self._client
        found = client.strategy.targets_of(client.at_guidance(), guidance)
        if found is None:
            return None
        targets, samples = found
        logits = client.predict(client.data.transfer_x[slice(None) if samples is None else samples])
        return logits, client.strategy.probabilities(targets)

    def choices(self) -> dict[str, float]:
        """Return the client's choices as of the last evaluation, by metric name."""
        client = self._client
        own = {"logit_adjustment": client.kappa} if client.scenario.fusion.logit_adjustment == "auto" else {}
        return own | dict(client.strategy.client_metrics(client.at_guidance()))


def log_shares(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the log shares `[C]` float32 of the classes among labels `[n]` and one of each."""
    counts = np.bincount(labels, minlength=classes) + 1
    return np.log(counts / counts.sum()).astype(np.float32)


def leaning(logits: np.ndarray, kappa: float, log_prior: np.ndarray) -> np.ndarray:
    """Return ``z + κ log π`` `[n, C]` of logits z `[n, C]` and a log prior `[C]`; z itself for κ = 0."""
    return logits if kappa == 0.0 else logits + np.float32(kappa) * log_prior


def smallest_kappa(logits: np.ndarray, labels: np.ndarray, log_prior: np.ndarray) -> float:
    """Return the smallest κ of `KAPPAS` with an accuracy within one standard error of the best.

    The standard error of the best accuracy a is ``√(a (1 − a) / n)``. Without samples κ is 0. The logits
    `[n, C]` are of samples that were not trained on.
    """
    if not len(labels):
        return 0.0
    answers = [leaning(logits, kappa, log_prior).argmax(axis=1) for kappa in KAPPAS]
    right = np.array([np.count_nonzero(answer == labels) for answer in answers]) / len(labels)
    best = float(right.max())
    enough = best - np.sqrt(best * (1.0 - best) / len(labels))
    return next(kappa for kappa, accuracy in zip(KAPPAS, right, strict=True) if accuracy >= enough)
