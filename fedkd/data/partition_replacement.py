"""Partitions with replacement: each client draws from all samples, so clients may share some.

There may be more clients than samples. A client holds no sample twice, and no client trains on local test
samples of another: the samples are parted first. Every client has a generator of its own.
"""

from __future__ import annotations

import numpy as np

from fedkd.data.partition import (
    class_proportions,
    draw_label_mixes,
    draw_sizes,
    equal_sizes,
    fewest_samples,
    mix_counts,
)
from fedkd.data.split import stratified_choice, test_size
from fedkd.errors import UserError
from fedkd.randomness import numpy_generator
from fedkd.scenario.schema import Partition

SCHEMES = ("iid", "dirichlet", "dirichlet-per-client", "quantity")
"""Schemes that say what one client draws."""
SIZE = "data.partition.samples_per_client"


def draw_with_replacement(
    labels: np.ndarray,
    clients: int,
    scheme: Partition,
    test_fraction: float,
    seed: int,
    *,
    task: int | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Let every client draw its samples from all that there are (other arguments: `partition`).

    Label mixes and sizes are those of the scheme without replacement, but every client finds the whole
    supply. A size drawn by `quantity` is at most what a client can hold.

    Args:
        scheme: One of `SCHEMES`, with `samples_per_client`.
        test_fraction: Share of a client's samples that it is tested on.

    Returns:
        For every client, its training and its test samples: positions in `labels`, each shuffled.

    Raises:
        UserError: A client cannot hold so many different samples.
    """
    for_tests = np.zeros(len(labels), dtype=bool)
    if test_fraction > 0.0:
        size = test_size(len(labels), test_fraction)
        for_tests = stratified_choice(labels, size, numpy_generator(seed, "local-test-pool", task=task))
    pools = [Pool(labels, np.flatnonzero(~for_tests)), Pool(labels, np.flatnonzero(for_tests))]
    sizes = _sizes(clients, scheme, seed, task)
    tested = np.array([test_size(int(size), test_fraction) for size in sizes])
    _check(sizes - tested, tested, pools, test_fraction, scheme)
    held = np.minimum(sizes - tested, pools[0].size), np.minimum(tested, pools[1].size)
    mixes = _mixes(labels, clients, scheme, seed, task)
    drawn = []
    for client in range(clients):
        rng = numpy_generator(seed, "partition", client=client, task=task)
        if scheme.scheme == "dirichlet-per-client":
            mix = draw_label_mixes(1, pools[0].classes, scheme.alpha, rng)[0]
        else:
            mix = mixes[client] if mixes is not None else None
        train, test = (pool.draw(int(of[client]), mix, rng) for pool, of in zip(pools, held, strict=True))
        drawn.append((train, test))
    return drawn


class Pool:
    """Samples that clients draw from.

    Args:
        labels: [n] int64 labels of all samples.
        places: Positions of the pool's own, ascending.
    """

    def __init__(self, labels: np.ndarray, places: np.ndarray) -> None:
        self.classes = int(labels.max()) + 1
        self._places = places
        self._supply = np.bincount(labels[places], minlength=self.classes)
        by_class = places[np.argsort(labels[places], kind="stable")]
        self._members = np.split(by_class, np.cumsum(self._supply)[:-1])

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self._places)

    def draw(self, size: int, mix: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
        """Return `size` different samples, shuffled.

        Args:
            size: At most that of the pool.
            mix: [C] weights of the classes, followed as far as each class reaches; None: all samples alike.
            rng: Source of the draw.
        """
        if mix is None:
            return self._places[rng.choice(self.size, size, replace=False)]
        counts = mix_counts(mix[None], np.array([size]), self._supply, rng)[0]
        parts = [
            self._members[label][rng.choice(self._supply[label], counts[label], replace=False)]
            for label in np.flatnonzero(counts)
        ]
        return rng.permutation(np.concatenate(parts)) if parts else self._places[:0]


def _sizes(clients: int, scheme: Partition, seed: int, task: int | None) -> np.ndarray:
    """Return [N] int64: how many samples every client holds, train and test."""
    assert scheme.samples_per_client is not None
    if scheme.scheme != "quantity":
        return equal_sizes(0, clients, scheme.samples_per_client)
    rng, floor = numpy_generator(seed, "partition", task=task), fewest_samples(scheme)
    return draw_sizes(clients, clients * scheme.samples_per_client, scheme.alpha, floor, rng)


def _mixes(
    labels: np.ndarray, clients: int, scheme: Partition, seed: int, task: int | None
) -> np.ndarray | None:
    """Return [N, C] label mixes that are drawn for all clients at once; None: there are none."""
    if scheme.scheme != "dirichlet":
        return None
    rng, supply = numpy_generator(seed, "partition", task=task), np.bincount(labels)
    return class_proportions(len(supply), clients, scheme.alpha, rng) * supply


def _check(
    train: np.ndarray, test: np.ndarray, pools: list[Pool], test_fraction: float, scheme: Partition
) -> None:
    """Refuse sizes that a client cannot hold; sizes that are drawn themselves are cut instead."""
    least = pools[0].size == 0 or (test_fraction > 0.0 and pools[1].size == 0)
    if not least and (
        scheme.scheme == "quantity" or (train.max() <= pools[0].size and test.max() <= pools[1].size)
    ):
        return
    samples = pools[0].size + pools[1].size
    parted = f", {pools[1].size} of them for local tests" if test_fraction > 0.0 else ""
    raise UserError(
        f"a client draws no sample twice, and there are {samples} private samples{parted};"
        f" got {scheme.samples_per_client}",
        key=SIZE,
    )
