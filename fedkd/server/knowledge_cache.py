"""The knowledge cache: every client's last knowledge of a task, with its age."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from fedkd.clients import PREDICTIONS_SENT
from fedkd.fusion import Arrays, Kind, filtered_mean, softmax
from fedkd.storage import add_prefix, group_by_number, strip_prefix

LEAST = 1e-12
"""Least faded probability, so that it has a logarithm."""


@dataclass(frozen=True, eq=False)
class Upload:
    """A client's upload in a round: arrays by name, training samples, sent bytes (0: unknown)."""

    round: int
    arrays: Arrays
    samples: int
    sent: int = 0

    @property
    def size(self) -> int:
        return sum(values.nbytes for values in self.arrays.values())

    def kept(self) -> Upload:
        """Return a copy; the arrays may lie in shared memory lent for a round."""
        return replace(self, arrays={name: values.copy() for name, values in self.arrays.items()})


class KnowledgeCache:
    """The last knowledge of one task from every client (FedCache: Wu et al., 2024)."""

    def __init__(self) -> None:
        self._last: dict[int, Upload] = {}

    def put(self, uploads: Mapping[int, Upload]) -> None:
        """Keep uploads in place of their clients' last ones."""
        self._last |= {client: upload.kept() for client, upload in uploads.items()}

    def all(self) -> dict[int, Upload]:
        return dict(sorted(self._last.items()))

    def has(self, client: int) -> bool:
        return client in self._last

    def drop(self, client: int) -> None:
        del self._last[client]

    @property
    def size(self) -> int:
        return sum(upload.size for upload in self._last.values())

    def state(self) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for client, upload in self._last.items():
            arrays |= add_prefix(f"{client}/arrays/", upload.arrays)
            arrays[f"{client}/round"] = np.array(upload.round)
            arrays[f"{client}/samples"] = np.array(upload.samples)
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._last = {
            client: Upload(int(own["round"]), strip_prefix("arrays/", own), int(own["samples"]))
            for client, own in group_by_number(arrays).items()
        }


def staleness(age: np.ndarray, exponent: float) -> np.ndarray:
    """Return s(τ) = (1 + τ)^−a `[N]`, the weight of uploads of age τ; a is the exponent."""
    return (1.0 + age) ** -exponent


def fade(
    uploads: Mapping[int, Upload],
    factors: Mapping[int, float],
    new: Sequence[Upload],
    kinds: Mapping[str, Kind],
) -> dict[int, Upload]:
    """Return knowledge weighted by age: the older, the closer to the mean of the `new`.

    With each client's f in (0, 1], probabilities become ``f · q + (1 − f) · mean of the new``. Numbers of
    samples become ``f`` times their value. So a mean weighs the old by ``f``, and comparisons find the old
    close to the new. Without new uploads nothing fades.
    """
    if not new or all(factor == 1.0 for factor in factors.values()):
        return dict(uploads)
    names = [name for name, kind in kinds.items() if kind is Kind.TRANSFER_LOGITS]
    known_now = {name: _mean_of_sent(new, name) for name in names}
    found = {}
    for client, upload in uploads.items():
        factor = factors[client]
        if factor == 1.0:
            found[client] = upload
            continue
        arrays = dict(upload.arrays)
        for name, kind in kinds.items():
            values = arrays[name]
            if kind is Kind.TRANSFER_LOGITS:
                q, (mean, known) = softmax(values), known_now[name]
                mixed = np.where(known[:, None], factor * q + (1.0 - factor) * mean, q)
                arrays[name] = np.log(np.maximum(mixed, LEAST)).astype(values.dtype)
            elif kind is Kind.LABEL_COUNTS:
                arrays[name] = values * factor
        found[client] = replace(upload, arrays=arrays, samples=max(ceil(upload.samples * factor), 1))
    return found


def evict(caches: Mapping[int, KnowledgeCache], most: int) -> None:
    """Drop the oldest uploads until `most` bytes are left; ties: the highest client's first."""
    kept = [
        (upload.round, -client, task, upload.size)
        for task, cache in caches.items()
        for client, upload in cache.all().items()
    ]
    total = sum(size for *_, size in kept)
    for _, minus_client, task, size in sorted(kept):
        if total > most:
            caches[task].drop(-minus_client)
            total -= size


def _mean_of_sent(uploads: Sequence[Upload], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean sent probabilities `[M, C]`, and the samples that have any `[M]`."""
    q = np.stack([softmax(upload.arrays[name]) for upload in uploads])
    if PREDICTIONS_SENT in uploads[0].arrays:
        return filtered_mean(
            q, np.stack([upload.arrays[PREDICTIONS_SENT] for upload in uploads]).astype(bool)
        )
    return q.mean(axis=0, dtype=np.float64), np.ones(q.shape[1], dtype=bool)
