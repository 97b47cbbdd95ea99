"""Stages of an upload: each has a client's half, `encode`, and a server's half, `decode_upload`.

Bytes are counted after all stages. Stages that drop predictions or classes come after `Precision`, so that
client and server see the same numbers. Of the arrays that stages add, only `PREDICTIONS_SENT` reaches the
fusion.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.clients.poison import Poison
from fedkd.errors import TrainingDiverged
from fedkd.fusion import (
    LARGEST_VALUE,
    FilterSettings,
    Kind,
    filter_threshold,
    finite_logits,
    normalised_certainty,
    softmax,
)
from fedkd.scenario import Filter, Fusion

HALF = float(np.finfo(np.float16).max)
PREDICTIONS_SENT = "predictions_sent"
"""Predictions on the transfer set that a client has sent: bits on the way, then `[M]` uint8."""
TOP_CLASS_SUFFIX, CLASS_COUNT_SUFFIX = "/classes", "/width"
"""Suffixes of the sent classes of a prediction, and of the number of all classes."""
LEAST = 1e-7
"""Least probability of a class that was not sent: its logarithm must be finite."""

Named = dict[str, np.ndarray]
Kinds = Mapping[str, Kind]
"""Kind of each array of an upload."""
Generators = Callable[[str], np.random.Generator]
"""From a purpose to the client's generator in this round."""


class UploadStage:
    """One transformation of an upload; by default the identity."""

    def encode(self, arrays: Named, kinds: Kinds, generators: Generators) -> Named:
        """Return the arrays after the client's half."""
        return arrays

    def decode(self, arrays: Named, kinds: Kinds) -> Named:
        """Return the arrays after the server's half."""
        return arrays


@dataclass(frozen=True, eq=False)
class Poisoning(UploadStage):
    """A poisoned client fakes its upload."""

    poison: Poison

    def encode(self, arrays: Named, kinds: Kinds, generators: Generators) -> Named:
        generator = generators("poison")
        return {name: self.poison.fake(kinds[name], values, generator) for name, values in arrays.items()}


@dataclass(frozen=True)
class Finite(UploadStage):
    """Refuse NaN at its source, and clip predictions too large for the server."""

    def encode(self, arrays: Named, kinds: Kinds, generators: Generators) -> Named:
        """Return the arrays; `TrainingDiverged` if some are NaN, or too large and no predictions."""
        found = dict(arrays)
        for name, values in arrays.items():
            if not values.size or not np.issubdtype(values.dtype, np.floating):
                continue
            low, high = values.min(), values.max()  # NaN, if there is one
            if low >= -LARGEST_VALUE and high <= LARGEST_VALUE:
                continue
            if np.isnan(low):
                raise TrainingDiverged(f"{name} are not numbers (NaN); a lower training.lr may help")
            if not kinds[name].is_prediction:
                raise TrainingDiverged(f"{name} are beyond ±{LARGEST_VALUE:g}; a lower training.lr may help")
            found[name] = np.clip(values, -LARGEST_VALUE, LARGEST_VALUE)
        return found


@dataclass(frozen=True)
class Precision(UploadStage):
    """Floating-point type of predictions and weights on the way."""

    dtype: str

    def encode(self, arrays: Named, kinds: Kinds, generators: Generators) -> Named:
        return {name: self._rounded(kinds[name], values) for name, values in arrays.items()}

    def _rounded(self, kind: Kind, values: np.ndarray) -> np.ndarray:
        rounds = (kind.is_prediction or kind is Kind.WEIGHTS) and np.issubdtype(values.dtype, np.floating)
        if not rounds:
            return values
        if self.dtype == "float16":  # larger values would be infinite
            values = np.clip(values, -HALF, HALF)
        return values.astype(self.dtype)

    def decode(self, arrays: Named, kinds: Kinds) -> Named:
        """Return weights in float32 for averaging; strategies read predictions of any precision."""
        half = {
            name: values.astype(np.float32)
            for name, values in arrays.items()
            if kinds[name] is Kind.WEIGHTS and values.dtype == np.float16
        }
        return arrays | half


@dataclass(frozen=True, eq=False)
class Sifting(UploadStage):
    """Send the predictions that pass the confidence `filters`, in order."""

    filters: Sequence[FilterSettings]

    def encode(self, arrays: Named, kinds: Kinds, generators: Generators) -> Named:
        """Return the kept rows, one bit for each row, and the number of padding bits."""
        name = _transfer_logits(arrays, kinds)
        if name is None:
            return arrays
        sure = normalised_certainty(softmax(arrays[name]))
        keep = np.ones(len(sure), dtype=bool)
        for wanted in self.filters:
            keep &= sure >= filter_threshold(wanted, sure[keep])
        filling = np.array([-len(keep) % 8], dtype=np.uint8)
        return arrays | {
            name: arrays[name][keep],
            PREDICTIONS_SENT: np.concatenate([np.packbits(keep), filling]),
        }

    def decode(self, arrays: Named, kinds: Kinds) -> Named:
        """Return all rows, zeros for those not sent, and `PREDICTIONS_SENT` as `[M]` uint8."""
        name = _transfer_logits(arrays, kinds)
        if name is None or PREDICTIONS_SENT not in arrays:
            return arrays
        bits, filling = arrays[PREDICTIONS_SENT][:-1], int(arrays[PREDICTIONS_SENT][-1])
        keep = np.unpackbits(bits)[: 8 * len(bits) - filling]
        rows = np.zeros((len(keep), arrays[name].shape[1]), dtype=arrays[name].dtype)
        rows[keep.astype(bool)] = arrays[name]
        return arrays | {name: rows, PREDICTIONS_SENT: keep}


@dataclass(frozen=True)
class TopClasses(UploadStage):
    """Send the `number` likeliest classes of every prediction."""

    number: int

    def encode(self, arrays: Named, kinds: Kinds, generators: Generators) -> Named:
        """Return log-probabilities `[M, k]` of the likeliest classes, the classes, and their total."""
        found = dict(arrays)
        for name, values in arrays.items():
            is_sent_whole = name not in kinds or not kinds[name].is_logits_of_samples
            if is_sent_whole or values.shape[1] <= self.number:
                continue
            classes = values.shape[1]
            z = finite_logits(values)
            z -= z.max(axis=1, keepdims=True)
            z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
            top = np.argsort(-z, axis=1, kind="stable")[:, : self.number]
            found[name] = np.take_along_axis(z, top, axis=1).astype(values.dtype)
            found[name + TOP_CLASS_SUFFIX] = top.astype(np.min_scalar_type(classes - 1))
            found[name + CLASS_COUNT_SUFFIX] = np.array([classes], dtype=np.uint32)
        return found

    def decode(self, arrays: Named, kinds: Kinds) -> Named:
        """Return whole predictions: the missing probability is spread evenly over the other classes."""
        found = {
            n: values
            for n, values in arrays.items()
            if not n.endswith((TOP_CLASS_SUFFIX, CLASS_COUNT_SUFFIX))
        }
        for name in found:
            if name + CLASS_COUNT_SUFFIX not in arrays:
                continue
            top = arrays[name + TOP_CLASS_SUFFIX].astype(np.int64)
            classes, values = int(arrays[name + CLASS_COUNT_SUFFIX][0]), arrays[name]
            missing = 1.0 - np.exp(values.astype(np.float64)).sum(axis=1, keepdims=True)
            each = np.log(np.maximum(missing / (classes - top.shape[1]), LEAST))
            whole = np.broadcast_to(each, (len(values), classes)).astype(values.dtype)
            np.put_along_axis(whole, top, values, axis=1)
            found[name] = whole
        return found


def _transfer_logits(arrays: Named, kinds: Kinds) -> str | None:
    return next((name for name in arrays if kinds.get(name) is Kind.TRANSFER_LOGITS), None)


def upload_stages(fusion: Fusion, poison: Poison | None = None) -> tuple[UploadStage, ...]:
    """Return the stages of a client's uploads, in order; `poison` is None for an honest client."""
    stages: list[UploadStage] = [] if poison is None else [Poisoning(poison)]
    stages += [Finite(), Precision(fusion.upload_dtype)]
    if sifted := [wanted for wanted in fusion.filters if wanted.at == "upload"]:
        stages.append(Sifting(sifted))
    if fusion.upload_top is not None:
        stages.append(TopClasses(fusion.upload_top))
    return tuple(stages)


def server_filters(fusion: Fusion) -> list[Filter]:
    return [wanted for wanted in fusion.filters if wanted.at == "fusion"]


def encode(stages: Sequence[UploadStage], arrays: Named, kinds: Kinds, generators: Generators) -> Named:
    """Return the sent arrays, after the client's half of every stage."""
    for stage in stages:
        arrays = stage.encode(arrays, kinds, generators)
    return arrays


def decode_upload(stages: Sequence[UploadStage], arrays: Named, kinds: Kinds) -> Named:
    """Return the received arrays, after the server's half of every stage, last stage first."""
    for stage in reversed(stages):
        arrays = stage.decode(arrays, kinds)
    return arrays
