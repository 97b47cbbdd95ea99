"""Partitions of labelled samples: one sorted, disjoint array of positions per client.

The lower bound on a client's samples holds by construction or by repair, since redraws might not end at small
α. The label-skew schemes follow Hsu, Qi & Brown (2019), arXiv:1909.06335 (`dirichlet-per-client`), Yurochkin
et al. (2019), arXiv:1905.12022 (`dirichlet`) and McMahan et al. (2017), arXiv:1602.05629 (`shards`).
"""

import numpy as np

from fedkd.data.partitions.stratified import apportion, apportion_rows
from fedkd.errors import UserError, refuse_if
from fedkd.randomness import numpy_generator
from fedkd.scenario import Partition

LEAST_SAMPLES = 2  # a client needs one sample to train on and one to test on


def partition(
    labels: np.ndarray, clients: int, scheme: Partition, seed: int, *, task: int | None = None
) -> list[np.ndarray]:
    """Partition samples with labels [n], of one `task` if given, and return their positions."""
    floor = check_sizes(len(labels), clients, scheme)
    rng = numpy_generator(seed, "partition", task=task)
    if scheme.scheme == "quantity":
        total = len(labels) if scheme.samples_per_client is None else clients * scheme.samples_per_client
        return deal_iid(labels, draw_sizes(clients, total, scheme.alpha, floor, rng), rng)
    if scheme.scheme == "dirichlet" and scheme.samples_per_client is None:
        counts = dirichlet_counts(np.bincount(labels), clients, scheme.alpha, floor, rng)
        return deal_counts(labels, counts, rng)
    sizes = equal_sizes(len(labels), clients, scheme.samples_per_client)
    if scheme.scheme == "iid":
        return deal_iid(labels, sizes, rng)
    if scheme.scheme == "shards":
        return deal_shards(labels, sizes, scheme.shards_per_client, rng)
    supply = np.bincount(labels)
    if scheme.scheme == "circle":
        mixes = circle_mixes(clients, len(supply))
    elif scheme.scheme == "dirichlet":
        mixes = class_proportions(len(supply), clients, scheme.alpha, rng) * supply
    else:
        mixes = draw_label_mixes(clients, len(supply), scheme.alpha, rng)
    return deal_counts(labels, mix_counts(mixes, sizes, supply, rng), rng)


def deal_by_owner(
    owners: np.ndarray | None, clients: int, scheme: Partition, seed: int, *, task: int | None = None
) -> list[np.ndarray]:
    """Give every client the samples of one owner (`scheme = "natural"`).

    Owners of fewer than `min_samples` are left out. Clients are drawn once among the others, in the owners'
    order. In a task every owner needs enough samples, because clients are the same in all tasks. `owners` [n]
    has each sample's owner, a number or a name; None: unknown.
    """
    if owners is None:
        raise UserError(
            "'natural' needs the owner of each sample: use 'synthetic', name `columns.client` of a 'table',"
            " or add `owners` to the arrays of your npz file or function",
            key="data.partition.scheme",
        )
    floor = fewest_samples(scheme)
    names, sizes = np.unique(owners, return_counts=True)
    by_owner = np.split(np.argsort(owners, kind="stable"), np.cumsum(sizes)[:-1])
    fit = np.flatnonzero(sizes >= floor) if task is None else np.arange(len(names))
    told = f"must be ≤ {len(fit)}, the owners with at least {floor} samples (data.partition.min_samples),"
    refuse_if(len(fit) < clients, f"{told} of {len(names)} owners, got {clients}", "data.clients")
    chosen = np.sort(numpy_generator(seed, "owners").choice(fit, clients, replace=False))
    client, fewest = int(sizes[chosen].argmin()), int(sizes[chosen].min())
    named = f" ('{names[chosen[client]]}')" if names.dtype.kind == "U" else ""
    told = f"the owner of client {client}{named} has {fewest} samples of the task, must have ≥ {floor}"
    refuse_if(fewest < floor, told, "data.partition.min_samples")
    return [by_owner[place] for place in chosen]


def fewest_samples(scheme: Partition) -> int:
    """Return the fewest samples that a client may hold."""
    return max(scheme.min_samples, LEAST_SAMPLES)


def check_sizes(samples: int, clients: int, scheme: Partition) -> int:
    """Return the fewest samples that a client may hold; a `UserError` if there are too few."""
    floor = fewest_samples(scheme)
    wanted = scheme.samples_per_client
    told = f"must be ≥ {floor} (min_samples, and at least one sample each to train and test), got {wanted}"
    refuse_if(wanted is not None and wanted < floor, told, "data.partition.samples_per_client")
    left, total = f"but only {samples} private samples are left", clients * (wanted or 0)
    told = f"{clients} clients × {wanted} samples = {total}, {left}; at most {samples // clients} each"
    refuse_if(total > samples, told, "data.partition.samples_per_client")
    told = f"{clients} clients × at least {floor} samples = {clients * floor}, {left}"
    refuse_if(wanted is None and clients * floor > samples, told, "data.partition.min_samples")
    return floor


def equal_sizes(samples: int, clients: int, samples_per_client: int | None) -> np.ndarray:
    """Return [N] int64 sizes: `samples_per_client` each, or all samples in nearly equal shares."""
    if samples_per_client is not None:
        return np.full(clients, samples_per_client, dtype=np.int64)
    return samples // clients + (np.arange(clients) < samples % clients).astype(np.int64)


def draw_sizes(clients: int, total: int, alpha: float, floor: int, rng: np.random.Generator) -> np.ndarray:
    """Return [N] int64 sizes that sum to `total`: `floor` each, and the rest by Dir(α)."""
    return floor + apportion(rng.dirichlet(np.full(clients, alpha)), total - clients * floor)


def deal_iid(labels: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Deal `sizes` [N] samples, drawn uniformly without replacement."""
    dealt = rng.permutation(len(labels))[: sizes.sum()]
    return [np.sort(part) for part in np.split(dealt, np.cumsum(sizes)[:-1])]


def deal_shards(
    labels: np.ndarray, sizes: np.ndarray, shards_per_client: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Sort samples by label, cut them into N·k even shards and deal k to every client."""
    told = f"must be ≤ {int(sizes.min())}, the samples of a client, got {shards_per_client}"
    refuse_if(shards_per_client > sizes.min(), told, "data.partition.shards_per_client")
    used = np.sort(rng.permutation(len(labels))[: sizes.sum()])
    by_label = used[np.argsort(labels[used], kind="stable")]
    widths = np.concatenate([equal_sizes(int(size), shards_per_client, None) for size in sizes])
    order = rng.permutation(len(widths))
    cut = np.split(by_label, np.cumsum(widths[order])[:-1])
    shards = [cut[place] for place in np.argsort(order)]
    return [
        np.sort(np.concatenate(shards[start : start + shards_per_client]))
        for start in range(0, len(shards), shards_per_client)
    ]


def class_proportions(classes: int, clients: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Return [N, C]: column c ~ Dir(α·1_N) has each client's share of class c."""
    return rng.dirichlet(np.full(clients, alpha), size=classes).T


def draw_label_mixes(clients: int, classes: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Return [N, C]: row n ~ Dir(α·1_C) is client n's wanted label distribution."""
    return rng.dirichlet(np.full(classes, alpha), size=clients)


def circle_mixes(clients: int, classes: int) -> np.ndarray:
    """Return [N, C]: client n is at class n·C/N of a circle, with weights ``1 − 4 apart / C``."""
    apart = np.abs(np.arange(classes) - np.arange(clients)[:, None] * classes / clients)
    return np.maximum(1.0 - np.minimum(apart, classes - apart) / max(classes / 4, 1.0), 0.0)


def dirichlet_counts(
    supply: np.ndarray, clients: int, alpha: float, floor: int, rng: np.random.Generator
) -> np.ndarray:
    """Deal all of `supply` [C] by proportions from Dir(α), then lift small clients to `floor`: [N, C]."""
    shares = class_proportions(len(supply), clients, alpha, rng)
    counts = np.stack([apportion(shares[:, c], supply[c]) for c in range(len(supply))], axis=1)
    return lift_to_floor(counts, shares * supply, floor)


def lift_to_floor(counts: np.ndarray, wishes: np.ndarray, floor: int) -> np.ndarray:
    """Move as few samples as possible to clients below `floor`: [N, C] int64.

    A small client receives its most wanted classes, each from the largest holder that can spare samples. So
    its label mix keeps its character. `wishes` [N, C] are the exact shares that `counts` [N, C] were rounded
    from; N·floor ≤ Σ counts.
    """
    counts = counts.copy()
    sizes = counts.sum(axis=1)
    for client in np.flatnonzero(sizes < floor):
        for c in np.argsort(-wishes[client], kind="stable"):
            while sizes[client] < floor:
                donor = int(np.argmax(np.where(sizes > floor, counts[:, c], 0)))
                moved = min(floor - sizes[client], sizes[donor] - floor, counts[donor, c])
                if moved <= 0:
                    break
                counts[donor, c] -= moved
                counts[client, c] += moved
                sizes[donor] -= moved
                sizes[client] += moved
    return counts


def mix_counts(
    mixes: np.ndarray, sizes: np.ndarray, supply: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Fill every client's size by its own label mix, while the supply lasts: [N, C] int64.

    Clients are served in random order. The share of an exhausted class goes to the client's other classes in
    proportion, then to all remaining classes. `mixes` [N, C] weigh the classes; `sizes` [N] sum to at most
    the `supply` [C].
    """
    left = supply.astype(np.int64)
    counts = np.zeros(mixes.shape, dtype=np.int64)
    for client in rng.permutation(len(sizes)):
        while (missing := sizes[client] - counts[client].sum()) > 0:
            weights = np.where(left > 0, mixes[client], 0.0)
            if not weights.sum() > 0.0:
                weights = left.astype(np.float64)
            taken = np.minimum(apportion(weights / weights.max(), missing), left)
            counts[client] += taken
            left -= taken
    return counts


def own_mix_counts(mixes: np.ndarray, sizes: np.ndarray, supply: np.ndarray) -> np.ndarray:
    """Fill every client's size like `mix_counts`, each from all of the `supply` [C]: [N, C] int64."""
    counts = np.zeros(mixes.shape, dtype=np.int64)
    unfilled = np.flatnonzero(sizes > 0)
    while len(unfilled):
        left, missing = supply - counts[unfilled], sizes[unfilled] - counts[unfilled].sum(axis=1)
        weights = np.where(left > 0, mixes[unfilled], 0.0)
        weights = np.where(weights.sum(axis=1, keepdims=True) > 0.0, weights, left)
        taken = apportion_rows(weights / weights.max(axis=1, keepdims=True), missing)
        counts[unfilled] += np.minimum(taken, left)
        unfilled = unfilled[counts[unfilled].sum(axis=1) < sizes[unfilled]]
    return counts


def deal_counts(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Deal `counts` [N, C] samples of each class, drawn uniformly within the class."""
    parts: list[list[np.ndarray]] = [[] for _ in counts]
    for c in range(counts.shape[1]):
        members = rng.permutation(np.flatnonzero(labels == c))
        bounds = np.concatenate([[0], np.cumsum(counts[:, c])])
        for n in np.flatnonzero(counts[:, c]):
            parts[n].append(members[bounds[n] : bounds[n + 1]])
    return [np.sort(np.concatenate(part)) for part in parts]
