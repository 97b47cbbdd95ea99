"""The transfer set: unlabelled samples that every participant holds."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.normalise import Statistics
from fedkd.data.partitions.stratified import apportion
from fedkd.data.registry import DATASETS, load_dataset
from fedkd.data.request import SourceRequest
from fedkd.errors import MAX_LISTED_ITEMS, UserError, refuse_if
from fedkd.randomness import numpy_generator

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def draw_holdout(
    labels: np.ndarray,
    available: np.ndarray,
    size: int,
    alpha: float | None = None,
    *,
    seed: int,
    task: int | None = None,
) -> np.ndarray:
    """Draw M = `size` transfer samples from `available` train indices [n], sorted.

    They are uniform, or with an `alpha` follow a label mix from Dir(α); small classes may be used up.
    """
    if size == 0:
        return available[:0]
    told = f"must be < {len(available)}, the train samples that may be held out, got {size}"
    refuse_if(size >= len(available), told, "data.transfer.size")
    if alpha is None:
        return np.sort(numpy_generator(seed, "transfer", task=task).choice(available, size, replace=False))
    generator = numpy_generator(seed, "transfer-mix", task=task)
    classes, counts = np.unique(labels[available], return_counts=True)
    mix = np.maximum(generator.dirichlet(np.full(len(classes), alpha)), 1e-12)
    taken = np.zeros(len(classes), dtype=np.int64)
    while (missing := size - int(taken.sum())) > 0:
        room = counts - taken
        taken += np.minimum(apportion(np.where(room > 0, mix, 0.0), missing), room)
    drawn = [
        generator.choice(available[labels[available] == label], number, replace=False)
        for label, number in zip(classes, taken, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def noise(size: int, shape: tuple[int, ...], *, seed: int) -> np.ndarray:
    """Return [M, *shape] float32 standard normal noise, with the statistics of normalised data."""
    return numpy_generator(seed, "transfer").standard_normal((size, *shape), dtype=np.float32)


class PublicSamples(NamedTuple):
    """A transfer set that no client owns."""

    x: np.ndarray  # [M, *shape] normalised samples
    y: np.ndarray | None  # [M] int64 labels in the classes of their data set; None: they have none


def foreign_samples(
    request: SourceRequest, size: int, private: Dataset, statistics: Statistics, *, seed: int
) -> PublicSamples:
    """Draw M transfer samples of another data set, in the private data's shape and scale."""
    key, name, shape = "data.transfer.source", request.name, private.shape
    if name not in DATASETS.names() and ":" not in name:
        choices = ", ".join(["holdout", "noise", *DATASETS.names()])
        raise UserError(f"no transfer source named '{name}'; allowed: {choices}", key=key)
    dataset = load_dataset(request, key=key, args_key="data.transfer.args")
    told = f"must be ≤ {len(dataset.train_x)}, the train samples of '{name}', got {size}"
    refuse_if(size > len(dataset.train_x), told, "data.transfer.size")
    told = f"samples of '{name}' are {dataset.kind.plural}, the private ones {private.kind.plural}"
    refuse_if(dataset.kind != private.kind, told, key)
    dataset = _with_columns_of(private, dataset, key)
    told = f"samples of '{name}' have shape {dataset.shape}, the private ones {shape}"
    refuse_if(dataset.shape != shape and not private.kind.converts, told, key)
    chosen = np.sort(numpy_generator(seed, "transfer").choice(len(dataset.train_x), size, replace=False))
    x = dataset.train_x[chosen]
    x = statistics.normalise(x if dataset.shape == shape else convert_images(x, shape))
    return PublicSamples(x, dataset.train_y[chosen])


def _with_columns_of(private: Dataset, public: Dataset, key: str) -> Dataset:
    """Return the public data set with its named columns in the private order; both must have the same."""
    own, foreign = private.feature_names, public.feature_names
    if own == foreign or not own or not foreign:
        return public
    for told, extra in (("lack", set(own) - set(foreign)), ("have", set(foreign) - set(own))):
        listed = ", ".join(sorted(extra)[:MAX_LISTED_ITEMS]) + ", …" * (len(extra) > MAX_LISTED_ITEMS)
        refuse_if(
            extra,
            f"samples of '{public.name}' {told} columns or categories unlike the private ones: {listed}",
            key,
        )
    order = [foreign.index(name) for name in own]
    return replace(
        public, train_x=public.train_x[:, order], test_x=public.test_x[:, order], feature_names=own
    )


def convert_images(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Convert images [n, c, h, w] to [n, C, H, W] float32: bilinear, by luminance or replication."""
    out = x.astype(np.float32) / 255.0 if x.dtype == np.uint8 else x.astype(np.float32)
    channels, height, width = shape
    if out.shape[1] != channels:
        weights = LUMINANCE if out.shape[1] == 3 else np.full(out.shape[1], 1 / out.shape[1], np.float32)
        out = np.einsum("nchw,c->nhw", out, weights)[:, None]
    if out.shape[2:] != (height, width):
        rows, columns = bilinear_matrix(out.shape[2], height), bilinear_matrix(out.shape[3], width)
        out = rows @ out @ columns.T
    if out.shape[1] != channels:
        out = np.repeat(out, channels, axis=1)  # only now: equal channels are resized once
    return np.ascontiguousarray(out, dtype=np.float32)


def bilinear_matrix(source: int, target: int) -> np.ndarray:
    """Return the [target, source] float32 matrix of an antialiased bilinear resize along an axis."""
    scale = source / target
    centres = (np.arange(target)[:, None] + 0.5) * scale - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(source) - centres) / max(scale, 1.0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
