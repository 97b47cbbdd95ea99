"""What guidance has done to a client: how it did just before, how it does now, how closely it follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isnan, nan
from typing import Literal

import numpy as np

from fedkd.fusion.fidelity import agreement, divergence, flips
from fedkd.fusion.views import Arrays
from fedkd.namespaces import below, under
from fedkd.training.evaluate import Score

Split = Literal["local", "global"]
SPLITS: tuple[Split, ...] = ("local", "global")

TRAINED = "trained"
CORRECT = "trained_correct"
FOLLOWED = "followed/"
MODELS = "models/"


class GuidanceEffect:
    """The two moments of a client's round, after its own training and after guidance, and their difference.

    It remembers between two messages, so it is part of the client's state.
    """

    def __init__(self) -> None:
        # Round in whose messages guidance came last, and the accuracies just before it had its effect; NaN:
        # it had none on the model.
        self._round = -1
        self._before: dict[Split, float] = dict.fromkeys(SPLITS, nan)
        # The same of each model that is measured for itself, by its name and the split.
        self._models_before: dict[str, float] = {}
        # Until an evaluation has told what guidance did: which common test samples were right before it, and
        # the guidance itself.
        self._correct_before: np.ndarray | None = None
        self._followed: Arrays | None = None

    def begin(self, round: int, scores: Mapping[Split, Score] | None) -> None:
        """Take down that guidance comes in this round, and how the client does without it.

        Args:
            scores: The client's; None: guidance does not change the model at once.
        """
        self._round = round
        self._models_before = {}
        if scores is None:
            self._before = dict.fromkeys(SPLITS, nan)
            return
        self._before = {split: score.accuracy for split, score in scores.items()}
        self._correct_before = scores["global"].correct

    def begin_model(self, name: str, split: Split, accuracy: float) -> None:
        """Take down how one of several models of the client does before guidance."""
        self._models_before[f"{name}_{split}"] = accuracy

    def begin_at(self, before: Mapping[Split, float]) -> None:
        """Take other accuracies for those before guidance, such as those over several tasks."""
        self._before = dict(before)

    def follow(self, guidance: Arrays) -> None:
        """Remember guidance until an evaluation has told how closely it is followed."""
        self._followed = guidance

    def forget(self) -> None:
        """Forget guidance that the client has trained on since."""
        self._followed = self._correct_before = None

    def forget_flips(self) -> None:
        """Forget which samples were right before: another model has taken the place of that one."""
        self._correct_before = None

    def before_and_after(self, round: int, split: Split, accuracy: float) -> dict[str, float]:
        """Return the accuracy after the client's own training and the one now, and what guidance gained.

        Args:
            round: 1-based.
            accuracy: Measured now, when the round's guidance has been applied.

        Returns:
            `accuracy_trained`, the same as `accuracy` where nothing has changed the model since, `accuracy`,
            and `fusion_gain`, NaN for a client that received no guidance in this round.
        """
        guided = self._round == round
        changed = guided and not isnan(self._before[split])
        trained = self._before[split] if changed else accuracy
        gain = accuracy - trained if guided else nan
        return {"accuracy_trained": trained, "accuracy": accuracy, "fusion_gain": gain}

    def before_and_after_of(self, round: int, name: str, split: Split, accuracy: float) -> dict[str, float]:
        """Return the accuracy of one of several models at both moments, by the names of their metrics."""
        before = self._models_before.get(f"{name}_{split}", nan) if self._round == round else nan
        trained = accuracy if isnan(before) else before
        return {f"accuracy_trained_{name}": trained, f"accuracy_{name}": accuracy}

    def fidelity(
        self,
        round: int,
        correct: np.ndarray,
        follow: Callable[[Arrays], tuple[np.ndarray, np.ndarray] | None],
    ) -> dict[str, float]:
        """Return how far the client now follows its guidance, and what that turned right and wrong.

        It is told once, of the round's guidance.

        Args:
            round: 1-based.
            correct: Which common test samples the client has right now.
            follow: Returns the client's logits `[K, C]` where guidance has targets, and the probabilities
                `[K, C]` that it asks for; None: it has none.

        Returns:
            `agreement` and `guidance_kl` on the transfer set, `positive_flips` and `negative_flips` on the
            common test set; NaN where there is nothing to measure.
        """
        measured = dict.fromkeys(("agreement", "guidance_kl", "positive_flips", "negative_flips"), nan)
        guidance, before = self._followed, self._correct_before
        self.forget()
        if guidance is None or self._round != round:
            return measured
        if before is not None:
            turned = flips(before, correct)
            measured["positive_flips"], measured["negative_flips"] = turned.positive, turned.negative
        followed = follow(guidance)
        if followed is not None and len(followed[0]):
            measured["agreement"] = agreement(*followed)
            measured["guidance_kl"] = divergence(*followed)
        return measured

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that `restore` needs."""
        before = [self._before[split] for split in SPLITS]
        arrays = {TRAINED: np.array([self._round, *before], dtype=np.float64)}
        if self._correct_before is not None:
            arrays[CORRECT] = self._correct_before
        models = {name: np.array(value, dtype=np.float64) for name, value in self._models_before.items()}
        return arrays | under(MODELS, models) | under(FOLLOWED, self._followed or {})

    def restore(self, arrays: Arrays) -> None:
        """Continue from a state that `state` returned."""
        round, *before = arrays[TRAINED].tolist()
        self._round, self._before = int(round), dict(zip(SPLITS, before, strict=True))
        self._correct_before = arrays.get(CORRECT)
        self._models_before = {name: float(value) for name, value in below(MODELS, arrays).items()}
        self._followed = below(FOLLOWED, arrays) or None
