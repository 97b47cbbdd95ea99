"""The effect of guidance on a client: scores before and after fusion, agreement with the targets."""

from collections.abc import Callable, Mapping
from math import isnan, nan
from typing import Literal

import numpy as np

from fedkd.fusion import Arrays, agreement, mean_kl_divergence, prediction_flips
from fedkd.storage import add_prefix, strip_prefix
from fedkd.training import Score

Split = Literal["local", "global"]
SPLITS: tuple[Split, ...] = ("local", "global")

TRAINED = "trained"
CORRECT = "trained_correct"
FOLLOWED = "followed/"
MODELS = "models/"
METRICS = "metrics/"


class GuidanceEffect:
    """Accuracies before fusion, and figures of the difference; a part of the client's state."""

    def __init__(self) -> None:
        # Round of the last guidance, and the accuracies before it; NaN: it did not change the model.
        self._round = -1
        self._before: dict[Split, float] = dict.fromkeys(SPLITS, nan)
        self._models_before: dict[str, float] = {}  # the same by model and split
        self._metrics_before: dict[str, float] = {}  # other metrics, by metric and split
        # Until an evaluation: the right answers on the common test set before guidance, and the guidance.
        self._correct_before: np.ndarray | None = None
        self._followed: Arrays | None = None

    def begin(
        self, round: int, scores: Mapping[Split, Score] | None, models: Mapping[str, float], *, replaces: bool
    ) -> None:
        """Record the arrival of guidance, and the scores before it; None: it does not change the model yet.

        `models` has the accuracy of each of several models by ``name_split``. With `replaces` another model
        takes the place of the client's, so that flips of answers are not its own.
        """
        self._round, self._models_before = round, dict(models)
        self._before, self._metrics_before = dict.fromkeys(SPLITS, nan), {}
        if scores is not None:
            self._before = {split: score.quality for split, score in scores.items()}
            self._metrics_before = {
                f"{name}_{split}": value
                for split, score in scores.items()
                for name, value in score.metrics.items()
            }
            self._correct_before = scores["global"].correct if scores["global"].main is None else None
        if replaces:
            self._correct_before = None

    def begin_at(self, before: Mapping[Split, float]) -> None:
        """Replace the accuracies before fusion, such as by those over several tasks."""
        self._before = dict(before)

    def follow(self, guidance: Arrays) -> None:
        self._followed = guidance

    def forget(self) -> None:
        """Forget guidance after further training."""
        self._followed = self._correct_before = None

    def before_and_after(self, round: int, split: Split, quality: float) -> dict[str, float]:
        """Return the metrics of a split before and after fusion, given the score's quality after it.

        `accuracy_before_fusion` equals `accuracy` if nothing has changed the model since. `fusion_gain` is
        NaN for a client without guidance in this round.
        """
        guided = self._round == round
        changed = guided and not isnan(self._before[split])
        trained = self._before[split] if changed else quality
        gain = quality - trained if guided else nan
        return {"accuracy_before_fusion": trained, "accuracy": quality, "fusion_gain": gain}

    def before_and_after_of(self, round: int, name: str, split: Split, accuracy: float) -> dict[str, float]:
        """Return the accuracy of one of several models before and after fusion, by metric name."""
        before = self._models_before.get(f"{name}_{split}", nan) if self._round == round else nan
        trained = accuracy if isnan(before) else before
        return {f"accuracy_before_fusion_{name}": trained, f"accuracy_{name}": accuracy}

    def metrics_before_and_after(
        self, round: int, split: Split, metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """Return the other metrics of a split before and after fusion, given those after it."""
        before = self._metrics_before if self._round == round else {}
        found: dict[str, float] = {}
        for name, value in metrics.items():
            found[f"{name}_before_fusion_{split}"] = before.get(f"{name}_{split}", value)
            found[f"{name}_{split}"] = value
        return found

    def fidelity(
        self,
        round: int,
        correct: np.ndarray,
        follow: Callable[[Arrays], tuple[np.ndarray, np.ndarray] | None] | None,
    ) -> dict[str, float]:
        """Return the agreement with the round's guidance, and the flips that it caused; once per guidance.

        Flips are on the common test set, of which `correct` are the right answers now. The agreement is on
        the transfer set; `follow` returns logits and target probabilities `[K, C]`, or None without targets;
        it is None without classes. Metrics without anything to measure are NaN.
        """
        measured = dict.fromkeys(("agreement", "guidance_kl", "positive_flips", "negative_flips"), nan)
        guidance, before = self._followed, self._correct_before
        self.forget()
        if guidance is None or self._round != round or follow is None:
            return measured
        if before is not None:
            turned = prediction_flips(before, correct)
            measured["positive_flips"], measured["negative_flips"] = turned.positive, turned.negative
        followed = follow(guidance)
        if followed is not None and len(followed[0]):
            measured["agreement"] = agreement(*followed)
            measured["guidance_kl"] = mean_kl_divergence(*followed)
        return measured

    def state(self) -> dict[str, np.ndarray]:
        before = [self._before[split] for split in SPLITS]
        arrays = {TRAINED: np.array([self._round, *before], dtype=np.float64)}
        if self._correct_before is not None:
            arrays[CORRECT] = self._correct_before
        models = {name: np.array(value, dtype=np.float64) for name, value in self._models_before.items()}
        metrics = {name: np.array(value, dtype=np.float64) for name, value in self._metrics_before.items()}
        arrays |= add_prefix(MODELS, models) | add_prefix(METRICS, metrics)
        return arrays | add_prefix(FOLLOWED, self._followed or {})

    def restore(self, arrays: Arrays) -> None:
        round, *before = arrays[TRAINED].tolist()
        self._round, self._before = int(round), dict(zip(SPLITS, before, strict=True))
        self._correct_before = arrays.get(CORRECT)
        self._models_before = {name: float(value) for name, value in strip_prefix(MODELS, arrays).items()}
        self._metrics_before = {name: float(value) for name, value in strip_prefix(METRICS, arrays).items()}
        self._followed = strip_prefix(FOLLOWED, arrays) or None
