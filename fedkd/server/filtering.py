"""Fusion of filtered predictions, with any strategy whose guidance is targets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedkd.clients import PREDICTIONS_SENT
from fedkd.fusion import (
    FilterSettings,
    FusionStrategy,
    Guidance,
    Knowledge,
    filter_masks,
    filtered_mean,
    filtered_mixture,
    finite_logits,
    has_personal_filter,
    mean_class_shares,
    softmax,
)
from fedkd.server.guidance import SAMPLES, TARGETS

LEAST = 1e-30


def fuse_filtered(
    strategy: FusionStrategy,
    knowledge: Knowledge,
    memory: Mapping[str, np.ndarray],
    filters: Sequence[FilterSettings],
) -> tuple[Guidance, float | None]:
    """Fuse the predictions that filters keep; return their share too, over receivers (None: no filters).

    A strategy that mixes predictions (`Capabilities.mixes`) mixes those kept; each receiver's weights on each
    sample sum to 1 again. In its estimate of a client's knowledge, the mean of the client's other predictions
    replaces dropped ones. For any other strategy, the other clients' mean does. A sample without predictions
    gets no targets. If nothing is dropped, the result is that of `fuse`, to the last bit.
    """
    if not filters and PREDICTIONS_SENT not in knowledge.payload:
        return strategy.fuse(knowledge, memory), None
    assert knowledge.logits is not None
    whole = np.ones(knowledge.logits.shape[:2], dtype=bool)
    sent = (
        np.stack(knowledge.payload[PREDICTIONS_SENT]).astype(bool)
        if PREDICTIONS_SENT in knowledge.payload
        else whole
    )
    knowledge = replace(
        knowledge, payload={n: a for n, a in knowledge.payload.items() if n != PREDICTIONS_SENT}
    )
    assert knowledge.logits is not None
    q = softmax(knowledge.logits)
    number, anywhere = [], np.zeros_like(whole)
    for keep in filter_masks(filters, q, sent):
        number.append(keep.mean())
        anywhere |= keep
    heard = float(np.mean(number))
    if heard == 1.0:
        return strategy.fuse(knowledge, memory), heard
    if strategy.capabilities.mixes:
        by_receiver = filter_masks(filters, q, sent)
        stood_in = replace(knowledge, logits=_by_own_mean(knowledge.logits, q, anywhere))
        guidance = _mixed(strategy.fuse(stood_in, memory), by_receiver, knowledge, filters)
    else:
        filled = _by_others(knowledge.logits, q, anywhere, strategy.capabilities.averages)
        guidance = _left(strategy.fuse(replace(knowledge, logits=filled), memory), anywhere, knowledge)
    return guidance, heard


def _by_own_mean(logits: np.ndarray, q: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return logits with each client's mean prediction in place of dropped ones."""
    own = np.log(np.maximum(mean_class_shares(q, keep), LEAST))
    return np.where(keep[..., None], logits, own[:, None, :].astype(logits.dtype))


def _by_others(logits: np.ndarray, q: np.ndarray, keep: np.ndarray, fuses: str) -> np.ndarray:
    """Return logits with the mean of the kept ones in place of dropped ones."""
    mean, known = filtered_mean(finite_logits(logits) if fuses == "logits" else q, keep)
    if fuses != "logits":
        mean = np.log(np.maximum(mean, LEAST))
    return np.where((~keep & known)[..., None], mean[None].astype(np.float32), logits)


def _mixed(
    guidance: Guidance, keeps: Iterator[np.ndarray], knowledge: Knowledge, filters: Sequence[FilterSettings]
) -> Guidance:
    weights, mixed = guidance.weights, guidance.mixed
    if weights is None or mixed is None:
        raise TypeError("a strategy with `mixes` must return `weights` and `mixed` in its Guidance")
    if has_personal_filter(filters):
        pairs = [filtered_mixture(own[None], mixed, keep) for own, keep in zip(weights, keeps, strict=True)]
        targets, taught = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    else:
        targets, taught = filtered_mixture(np.asarray(weights), mixed, next(keeps))
    if taught.all():
        return replace(guidance, targets=targets, mixed=None)
    return _personal(guidance, targets, taught, knowledge)


def _left(guidance: Guidance, keep: np.ndarray, knowledge: Knowledge) -> Guidance:
    targets, taught = guidance.targets, np.logical_or.reduce(keep, axis=0)
    if targets is None or taught.all():
        return replace(guidance, mixed=None)
    if targets.ndim == 2:
        shared = {**guidance.shared, **_some(targets, taught, knowledge)}
        return replace(guidance, targets=None, mixed=None, shared=shared)
    return _personal(guidance, targets, np.broadcast_to(taught, targets.shape[:2]), knowledge)


def _personal(guidance: Guidance, targets: np.ndarray, taught: np.ndarray, knowledge: Knowledge) -> Guidance:
    """Return guidance of each receiver's targets `[N, M, C]`, of the samples in `taught` `[N, M]`."""
    others = guidance.personal or [{}] * len(targets)
    tables = [
        {**arrays, **_some(own, rows, knowledge)}
        for own, rows, arrays in zip(targets, taught, others, strict=True)
    ]
    return replace(guidance, targets=None, mixed=None, personal=tables)


def _some(targets: np.ndarray, taught: np.ndarray, knowledge: Knowledge) -> dict[str, np.ndarray]:
    """Return the targets `[K, C]` of some samples and their indices `[K]`; nothing without samples."""
    if not taught.any():
        return {}
    samples = np.flatnonzero(taught) if knowledge.request is None else knowledge.request[taught]
    return {TARGETS: targets[taught], SAMPLES: samples.astype(np.int32)}
