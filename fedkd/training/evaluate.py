"""Predictions of a model, and their scores."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import nan

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.models import Conv2d, evaluation_mode
from fedkd.training.fast.known_modules import all_recordable
from fedkd.training.losses import in_floats

AT_ONCE = 256
"""Batch size of predictions."""
AT_ONCE_BATCH_LAST = 128
"""Batch size of predictions with images batch last, for the CPU's cache."""


@dataclass(frozen=True)
class Score:
    """Accuracy and mean cross entropy on labelled samples, nan without any; `correct` is `[n]`.

    `metrics` are the other metrics of the scenario by name. `main` decides about gains, more is better; None:
    the accuracy. In regression there is no accuracy.
    """

    accuracy: float
    loss: float
    correct: np.ndarray
    metrics: Mapping[str, float] = field(default_factory=dict)
    main: float | None = None

    @property
    def quality(self) -> float:
        """Value that gains compare; more is better."""
        return self.accuracy if self.main is None else self.main


def predict_in_batches(
    model: nn.Module,
    outputs: Callable[[Tensor], Tensor],
    x: Tensor,
    batch_size: int | None = None,
    lanes: int = 1,
) -> Tensor:
    """Return outputs ``[M, ...]`` float32 of samples ``[M, *input_shape]``, on their device.

    `outputs` maps a batch ``[B, *input_shape]`` to ``[B, ...]`` and uses `model` in evaluation mode.
    `batch_size` is fixed, because it changes last bits; None: the model decides. On a CPU, `lanes` batches
    run concurrently on idle processors if all modules are recordable.
    """
    if batch_size is None:
        own = any(isinstance(module, Conv2d) for module in model.modules())
        batch_size = AT_ONCE_BATCH_LAST if own else AT_ONCE
    starts = range(0, max(len(x), 1), batch_size)  # no samples: one empty batch, for C columns
    parts = [x[start : start + batch_size] for start in starts]
    lanes = min(lanes, len(parts))
    if lanes > 1 and (x.device.type != "cpu" or not all_recordable(model)):
        lanes = 1
    with evaluation_mode(model):
        return in_floats(torch.cat(_each(outputs, parts, lanes)))


def _each(outputs: Callable[[Tensor], Tensor], parts: Sequence[Tensor], lanes: int) -> list[Tensor]:
    if lanes == 1:
        return [outputs(part) for part in parts]
    # Number of threads and gradient mode are per thread.
    number = torch.get_num_threads()
    with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(number,)) as pool:
        return list(pool.map(torch.no_grad()(outputs), parts))


def predict_logits(model: nn.Module, x: Tensor, batch_size: int | None = None, lanes: int = 1) -> Tensor:
    """Return the logits ``[M, C]`` of samples ``[M, *input_shape]`` (see `predict_in_batches`)."""
    return predict_in_batches(model, model, x, batch_size, lanes)


def score(logits: np.ndarray, labels: np.ndarray) -> Score:
    """Return the score of logits ``[n, C]`` on labels ``[n]``."""
    if not len(labels):
        return Score(nan, nan, np.zeros(0, dtype=bool))
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(labels)), labels]
    correct = z.argmax(axis=1) == labels
    return Score(float(correct.mean()), float(losses.mean()), correct)
