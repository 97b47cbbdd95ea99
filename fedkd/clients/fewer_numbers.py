"""Stages of an upload; those that send fewer predictions, or fewer numbers of each.

The latter come after the precision, so that client and server judge the same numbers. They add arrays that
only their server halves read; `SENT` alone goes on to the fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.fusion.confidence import certainty
from fedkd.fusion.filters import Wanted, least
from fedkd.fusion.kinds import Kind
from fedkd.fusion.probabilities import finite_logits, softmax

SENT = "predictions_sent"
"""Which predictions on the transfer set a client has sent: bits on the way, then `[M]` uint8."""
CLASSES, WIDTH = "/classes", "/width"
"""End the names of which classes are sent of a prediction, and of how many there are."""
LEAST = 1e-7
"""A class that was not sent has at least this probability: its logarithm has to be a number."""

Named = dict[str, np.ndarray]
Kinds = Mapping[str, Kind]
"""What each array of an upload is, as the strategy says."""
Generators = Callable[[str], np.random.Generator]
"""From a purpose to the client's generator for it in this round."""


class Stage:
    """One thing that happens to an upload on its way; by default nothing does."""

    def encode(self, arrays: Named, kinds: Kinds, generators: Generators) -> Named:
        """Return what becomes of the arrays on the client."""
        return arrays

    def decode(self, arrays: Named, kinds: Kinds) -> Named:
        """Return what becomes of them on the server."""
        return arrays


@dataclass(frozen=True, eq=False)
class Sifting(Stage):
    """A client does not send predictions on transfer samples that it is not sure enough of."""

    filters: Sequence[Wanted]

    def encode(self, arrays: Named, kinds: Kinds, generators: Generators) -> Named:
        """Return the rows that are kept, a bit for each that there was, and how many bits are but filling."""
        name = _transfer_logits(arrays, kinds)
        if name is None:
            return arrays
        sure = certainty(softmax(arrays[name]))
        keep = np.ones(len(sure), dtype=bool)
        for wanted in self.filters:
            keep &= sure >= least(wanted, sure[keep])
        filling = np.array([-len(keep) % 8], dtype=np.uint8)
        return arrays | {name: arrays[name][keep], SENT: np.concatenate([np.packbits(keep), filling])}

    def decode(self, arrays: Named, kinds: Kinds) -> Named:
        """Return all rows, those that were not sent as zeros, and which were, `[M]` uint8."""
        name = _transfer_logits(arrays, kinds)
        if name is None or SENT not in arrays:
            return arrays
        bits, filling = arrays[SENT][:-1], int(arrays[SENT][-1])
        keep = np.unpackbits(bits)[: 8 * len(bits) - filling]
        rows = np.zeros((len(keep), arrays[name].shape[1]), dtype=arrays[name].dtype)
        rows[keep.astype(bool)] = arrays[name]
        return arrays | {name: rows, SENT: keep}


@dataclass(frozen=True)
class TopClasses(Stage):
    """Of every prediction the likeliest classes alone are sent.

    Attributes:
        number: How many; a prediction of no more is sent as it is.
    """

    number: int

    def encode(self, arrays: Named, kinds: Kinds, generators: Generators) -> Named:
        """Return log-probabilities `[M, k]` of the likeliest classes, which they are, and of how many."""
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
            found[name + CLASSES] = top.astype(np.min_scalar_type(classes - 1))
            found[name + WIDTH] = np.array([classes], dtype=np.uint32)
        return found

    def decode(self, arrays: Named, kinds: Kinds) -> Named:
        """Return whole predictions, what is missing to 1 spread evenly over the other classes."""
        found = {n: values for n, values in arrays.items() if not n.endswith((CLASSES, WIDTH))}
        for name in found:
            if name + WIDTH not in arrays:
                continue
            top = arrays[name + CLASSES].astype(np.int64)
            classes, values = int(arrays[name + WIDTH][0]), arrays[name]
            missing = 1.0 - np.exp(values.astype(np.float64)).sum(axis=1, keepdims=True)
            each = np.log(np.maximum(missing / (classes - top.shape[1]), LEAST))
            whole = np.broadcast_to(each, (len(values), classes)).astype(values.dtype)
            np.put_along_axis(whole, top, values, axis=1)
            found[name] = whole
        return found


def _transfer_logits(arrays: Named, kinds: Kinds) -> str | None:
    names = [name for name in arrays if kinds.get(name) is Kind.TRANSFER_LOGITS]
    return names[0] if names else None
