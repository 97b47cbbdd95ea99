"""Weights of many receivers: computed in blocks, so that no N×N array is held."""

from collections.abc import Callable, Iterator

import numpy as np

from fedkd.fusion.math.neighbour_weights import effective_neighbours

BLOCK = 4_000_000
"""Elements N² up to which one block holds all weights; 32 MB in float64."""
KEPT = 64
"""Largest weights of each receiver that stay in memory."""
TEMPORARIES = 10
"""Arrays of a block's size that exist at a time, at most."""

Rows = Callable[[slice], tuple[np.ndarray, np.ndarray]]
"""Distances and weights `[n, N]` of consecutive receivers."""


def fits_one_block(clients: int) -> bool:
    """Return whether one block holds the weights between all clients."""
    return clients**2 <= BLOCK


def blocks(clients: int) -> Iterator[slice]:
    """Yield consecutive receivers whose weights fit into a block."""
    step = max(1, BLOCK // clients)
    for start in range(0, clients, step):
        yield slice(start, min(start + step, clients))


def largest(weights: np.ndarray, count: int) -> np.ndarray:
    """Return the columns of each row's `count` largest weights, in falling order, `[n, count]`.

    Ties go to the first columns: the choice must not depend on the sort.
    """
    if count < weights.shape[1]:
        last = np.partition(weights, -count, axis=1)[:, -count, None]
        above, tied = weights > last, weights == last
        room = count - above.sum(axis=1, keepdims=True)
        columns = np.nonzero(above | (tied & (tied.cumsum(axis=1) <= room)))[1].reshape(-1, count)
    else:
        columns = np.broadcast_to(np.arange(weights.shape[1]), weights.shape)
    order = np.argsort(-np.take_along_axis(weights, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


class BlockedWeights:
    """Weights `[N, N]` that are computed when they are read, by rows or with `np.asarray`.

    After `visit`, the following are in memory:

    Attributes:
        effective: Each receiver's effective number of neighbours, `[N]`.
        senders: Columns of its `KEPT` largest weights, `[N, K]`, with their `weights` and `distances`,
            float32.
    """

    dtype = np.dtype(np.float64)

    def __init__(self, clients: int, rows: Rows) -> None:
        self.shape = clients, clients
        self._rows = rows
        kept = clients, min(KEPT, clients)
        self.effective = np.empty(clients)
        self.senders = np.empty(kept, dtype=np.int64)
        self.weights, self.distances = np.empty(kept, dtype=np.float32), np.empty(kept, dtype=np.float32)

    def visit(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Compute all weights once; yield receivers and their weights `[n, N]`, block by block."""
        for receivers in blocks(len(self)):
            d, weights = self._rows(receivers)
            self.effective[receivers] = effective_neighbours(weights)
            single = weights.astype(np.float32)
            senders = largest(single, self.senders.shape[1])
            self.senders[receivers] = senders
            self.weights[receivers] = np.take_along_axis(single, senders, axis=1)
            self.distances[receivers] = np.take_along_axis(d, senders, axis=1)
            yield receivers, weights

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, receiver: int) -> np.ndarray:
        return self._rows(slice(receiver, receiver + 1))[1][0]

    def __iter__(self) -> Iterator[np.ndarray]:
        for receivers in blocks(len(self)):
            yield from self._rows(receivers)[1]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.stack(list(self)).astype(self.dtype if dtype is None else dtype, copy=False)


def fusion_memory(clients: int, samples: int, classes: int, *, whole: bool = False) -> int:
    """Return the bytes of fusing `[N, M, C]` predictions under weights of every pair of clients.

    Uploads, logits, probabilities and targets take 4 bytes a number each. `whole`: distances and weights of
    all pairs exist at once.
    """
    predictions = 4 * 4 * clients * samples * classes
    pairs = clients**2 if whole else min(clients**2, max(BLOCK, clients))
    return predictions + 8 * TEMPORARIES * pairs
