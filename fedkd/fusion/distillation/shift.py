"""Shifts of clients' predictions since before any training."""

from functools import cached_property

import numpy as np

from fedkd.fusion import Capabilities, Kind, Knowledge, LocalObjective, softmax
from fedkd.fusion.capabilities import PREDICTIONS
from fedkd.fusion.distillation.soft_labels import TemperedLabels
from fedkd.fusion.views import ClientView

INITIAL_PREDICTION = "start"
STILL = 1e-3
"""Shorter shifts are rounding of float16 predictions."""


def mean_prediction(logits: np.ndarray) -> np.ndarray:
    """Return ``mean_i softmax(z_i)`` of logits `[..., M, C]`, `[..., C]` float32; 0 without samples."""
    if logits.shape[-2] == 0:
        return np.zeros((*logits.shape[:-2], logits.shape[-1]), dtype=np.float32)
    return softmax(logits).mean(axis=-2, dtype=np.float64).astype(np.float32)


def shifts(logits: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return ``mean_i (softmax z_n(x_i) − softmax r_n(x_i))``, `[N, C]` float64.

    z are present logits `[N, M, C]`; `start` is the mean of softmax r before any training, `[N, C]`.
    """
    # Invalid probabilities must not dominate by their size.
    return mean_prediction(logits).astype(np.float64) - np.clip(start.astype(np.float64), 0.0, 1.0)


def shift_cosine(shift: np.ndarray) -> np.ndarray:
    """Return the cosines of shifts `[N, C]`, `[N, N]`; 1 between clients without a shift."""
    length = np.sqrt((shift**2).sum(axis=1))
    still = length < STILL
    unit = np.divide(shift, length[:, None], out=np.zeros_like(shift), where=~still[:, None])
    # Client by client: a matrix product may round equal columns differently.
    cosine = np.stack([(unit * row).sum(axis=1) for row in unit])
    np.fill_diagonal(cosine, 1.0)
    return np.where(np.outer(still, still), 1.0, np.clip(cosine, -1.0, 1.0))


class KnowsStart(LocalObjective, TemperedLabels):
    """Base of strategies whose clients also send their mean prediction before any training."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            kinds={**PREDICTIONS, INITIAL_PREDICTION: Kind.UNTRAINED},
            optional={"label_counts"} | (frozenset() if self.tells_start else {INITIAL_PREDICTION}),
        )

    @property
    def tells_start(self) -> bool:
        """True if clients send it."""
        return True

    def before_training(self, client: ClientView) -> None:
        """Store the mean prediction of an untrained client."""
        if self.tells_start:
            self._start_of(client)

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return the logits `[M, C]`, and `start` `[C]`."""
        arrays = super().upload(client)
        return arrays | {INITIAL_PREDICTION: self._start_of(client)} if self.tells_start else arrays

    def _start_of(self, client: ClientView) -> np.ndarray:
        if (
            INITIAL_PREDICTION not in client.memory
            or len(client.memory[INITIAL_PREDICTION]) != client.classes
        ):
            client.memory[INITIAL_PREDICTION] = mean_prediction(client.logits())
        return client.memory[INITIAL_PREDICTION]

    def shift_of(self, knowledge: Knowledge) -> np.ndarray:
        """Return the shifts of the round's clients, `[N, C]`."""
        assert knowledge.logits is not None
        return shifts(knowledge.logits, np.stack(knowledge.payload[INITIAL_PREDICTION]))
