"""The knowledge cache: what every client last knew of a task, with its age."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from fedkd.clients.fewer_numbers import SENT
from fedkd.fusion.filters import mean_of_kept
from fedkd.fusion.kinds import Kind
from fedkd.fusion.probabilities import softmax
from fedkd.fusion.views import Arrays
from fedkd.namespaces import below, by_number, under

LEAST = 1e-12
"""What a faded probability is at least, so that it has a logarithm."""


@dataclass(frozen=True, eq=False)
class Upload:
    """What a client sent in a round.

    Attributes:
        round: The round.
        arrays: Its knowledge by name.
        samples: Number of its training samples.
        sent: Bytes that it was on its way; 0: nobody has counted.
    """

    round: int
    arrays: Arrays
    samples: int
    sent: int = 0

    @property
    def size(self) -> int:
        """Bytes of the arrays."""
        return sum(values.nbytes for values in self.arrays.values())

    def kept(self) -> Upload:
        """Return the same with copied arrays: they may lie in shared memory that is only lent for a round."""
        return replace(self, arrays={name: values.copy() for name, values in self.arrays.items()})


class KnowledgeCache:
    """The last knowledge of one task that every client has sent (FedCache: Wu et al., 2024)."""

    def __init__(self) -> None:
        self._last: dict[int, Upload] = {}

    def put(self, uploads: Mapping[int, Upload]) -> None:
        """Keep uploads in place of their clients' earlier ones."""
        self._last |= {client: upload.kept() for client, upload in uploads.items()}

    def all(self) -> dict[int, Upload]:
        """Return all that is kept, in client order."""
        return dict(sorted(self._last.items()))

    def has(self, client: int) -> bool:
        """Return whether anything of a client's is kept."""
        return client in self._last

    def drop(self, client: int) -> None:
        """Forget what a client sent."""
        del self._last[client]

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(upload.size for upload in self._last.values())

    def state(self) -> dict[str, np.ndarray]:
        """Return all that is kept, keyed by client."""
        arrays: dict[str, np.ndarray] = {}
        for client, upload in self._last.items():
            arrays |= under(f"{client}/arrays/", upload.arrays)
            arrays[f"{client}/round"] = np.array(upload.round)
            arrays[f"{client}/samples"] = np.array(upload.samples)
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`."""
        self._last = {
            client: Upload(int(own["round"]), below("arrays/", own), int(own["samples"]))
            for client, own in by_number(arrays).items()
        }


def staleness(age: np.ndarray, exponent: float) -> np.ndarray:
    """Return s(τ) = (1 + τ)^−a, what an upload counts by the versions that have come since it began, `[N]`.

    Args:
        age: τ, `[N]`.
        exponent: a.
    """
    return (1.0 + age) ** -exponent


def fade(
    uploads: Mapping[int, Upload],
    factors: Mapping[int, float],
    new: Sequence[Upload],
    kinds: Mapping[str, Kind],
) -> dict[int, Upload]:
    """Return knowledge as it counts now: the older it is, the less it says of its own.

    Probabilities on the transfer set become ``f · q + (1 − f) · mean of what is new``, and numbers of samples
    that weigh them ``f`` times what they were. In a mean of probabilities the old weighs ``f`` then, and the
    new more than 1. A strategy that compares clients finds the old ones near to what is known now.

    Args:
        factors: f of every client, in (0, 1].
        new: What has just come; empty: nothing fades.
        kinds: What the arrays are, by name.
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
    """Forget what is oldest in the caches of all tasks until at most `most` bytes are kept.

    Of uploads of equal age, that of the highest client goes first.
    """
    kept = [
        (upload.round, -client, task, upload.size)
        for task, cache in caches.items()
        for client, upload in cache.all().items()
    ]
    total = sum(size for *_, size in kept)
    for _, minus_client, task, size in sorted(kept):
        if total <= most:
            return
        caches[task].drop(-minus_client)
        total -= size


def _mean_of_sent(uploads: Sequence[Upload], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of the probabilities that were sent of each sample, `[M, C]`, and of which any were."""
    q = np.stack([softmax(upload.arrays[name]) for upload in uploads])
    if SENT in uploads[0].arrays:
        return mean_of_kept(q, np.stack([upload.arrays[SENT] for upload in uploads]).astype(bool))
    return q.mean(axis=0, dtype=np.float64), np.ones(q.shape[1], dtype=bool)
