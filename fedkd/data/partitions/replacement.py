"""Partitions with replacement: clients draw from all samples, and may share some.

There may be more clients than samples. A client holds no sample twice. Training and local test samples are
split first, so no client trains on another's test sample.
"""

from collections.abc import Sequence

import numpy as np

from fedkd.data.partitions.schemes import (
    class_proportions,
    draw_label_mixes,
    draw_sizes,
    equal_sizes,
    fewest_samples,
    own_mix_counts,
)
from fedkd.data.partitions.stratified import stratified_choice, test_size
from fedkd.errors import UserError
from fedkd.randomness import numpy_generator
from fedkd.scenario import Partition

REPLACEMENT_SCHEMES = (
    "iid",
    "dirichlet",
    "dirichlet-per-client",
    "quantity",
)  # schemes that define one client's draw
SIZE = "data.partition.samples_per_client"
BLOCK = 10_000  # clients whose draws are counted at once


def draw_with_replacement(
    labels: np.ndarray,
    clients: int,
    scheme: Partition,
    test_fraction: float,
    seed: int,
    *,
    task: int | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Let every client draw from all samples: its train and its test positions, shuffled."""
    for_tests = np.zeros(len(labels), dtype=bool)
    if test_fraction > 0.0:
        size = test_size(len(labels), test_fraction)
        for_tests = stratified_choice(labels, size, numpy_generator(seed, "local-test-pool", task=task))
    pools = [Pool(labels, np.flatnonzero(~for_tests)), Pool(labels, np.flatnonzero(for_tests))]
    assert scheme.samples_per_client is not None
    sizes, mixes = equal_sizes(0, clients, scheme.samples_per_client), None
    rng = numpy_generator(seed, "partition", task=task)
    if scheme.scheme == "quantity":
        total = clients * scheme.samples_per_client
        sizes = draw_sizes(clients, total, scheme.alpha, fewest_samples(scheme), rng)
    elif scheme.scheme == "dirichlet":
        supply = np.bincount(labels)
        mixes = class_proportions(len(supply), clients, scheme.alpha, rng) * supply
    tested = np.array([test_size(int(size), test_fraction) for size in sizes])
    wanted = (sizes - tested, tested)
    empty = pools[0].size == 0 or (test_fraction > 0.0 and pools[1].size == 0)
    too_many = any(own.max() > pool.size for own, pool in zip(wanted, pools, strict=True))
    if empty or (too_many and scheme.scheme != "quantity"):
        parted = f", {pools[1].size} of them for local tests" if test_fraction > 0.0 else ""
        told = f"a client cannot draw a sample twice; there are {len(labels)} private samples{parted},"
        raise UserError(f"{told} got {scheme.samples_per_client}", key=SIZE)
    wanted = tuple(np.minimum(own, pool.size) for own, pool in zip(wanted, pools, strict=True))
    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, clients, BLOCK):
        block = range(start, min(start + BLOCK, clients))
        rngs = [numpy_generator(seed, "partition", client=client, task=task) for client in block]
        mix = None if mixes is None else mixes[start : block.stop]
        if scheme.scheme == "dirichlet-per-client":
            mix = np.concatenate([draw_label_mixes(1, pools[0].classes, scheme.alpha, rng) for rng in rngs])
        parts = [
            pool.draw(own[start : block.stop], mix, rngs) for pool, own in zip(pools, wanted, strict=True)
        ]
        drawn += zip(*parts, strict=True)
    return drawn


class Pool:
    """Samples at ascending `places` among all samples with `labels` [n]."""

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

    def draw(
        self, sizes: np.ndarray, mixes: np.ndarray | None, rngs: Sequence[np.random.Generator]
    ) -> list[np.ndarray]:
        """Return each client's `sizes` [N] different samples, shuffled, by class weights `mixes` [N, C].

        None: uniformly. `rngs` are the clients' generators.
        """
        if mixes is None:
            pairs = zip(sizes.tolist(), rngs, strict=True)
            return [self._places[rng.choice(self.size, size, replace=False)] for size, rng in pairs]
        counts = own_mix_counts(mixes, sizes, self._supply)
        return [self._draw_counts(own, rng) for own, rng in zip(counts.tolist(), rngs, strict=True)]

    def _draw_counts(self, counts: list[int], rng: np.random.Generator) -> np.ndarray:
        parts = [
            members[rng.choice(len(members), count, replace=False)]
            for members, count in zip(self._members, counts, strict=True)
            if count
        ]
        return rng.permutation(np.concatenate(parts)) if parts else self._places[:0]
