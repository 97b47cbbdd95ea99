"""Convert a strategy's guidance into each client's arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedkd.fusion import Arrays, BlockedWeights, Guidance, Knowledge, check_arrays

TARGETS = "targets"
SAMPLES = "samples"


def as_sent(targets: np.ndarray) -> np.ndarray:
    """Return targets in single precision at most; double precision would cost twice the bytes."""
    return targets.astype(np.float32) if targets.dtype == np.float64 else targets


def tables_of(guidance: Guidance, knowledge: Knowledge) -> tuple[dict[int, Arrays], Arrays]:
    """Return each client's arrays and those of all others; clients with equal arrays share a table."""
    shared = dict(guidance.shared)
    if guidance.targets is not None and knowledge.request is not None:
        # Targets of some transfer samples need their indices.
        shared.setdefault(SAMPLES, knowledge.request.astype(np.int32))
    targets = None if guidance.targets is None else as_sent(guidance.targets)
    if targets is not None and targets.ndim == 2:
        shared[TARGETS] = targets
    nothing: Arrays = {}
    own: dict[int, Arrays] = dict(
        zip(knowledge.clients, guidance.personal or [nothing] * len(knowledge.clients), strict=True)
    )
    if targets is not None and targets.ndim == 3:
        pairs = zip(own.items(), targets, strict=True)
        own = {client: {**arrays, TARGETS: rows} for (client, arrays), rows in pairs}
    own |= guidance.absent
    tables: dict[int, Arrays] = {id(arrays): {**shared, **arrays} for arrays in own.values()}
    by_client = {client: tables[id(arrays)] for client, arrays in own.items()}
    if guidance.for_absent is not None:
        return by_client, {**shared, **guidance.for_absent}
    return by_client, nothing if guidance.is_personal else tables.get(id(nothing), shared)


def check_guidance(guidance: Guidance, knowledge: Knowledge) -> None:
    """Check a strategy's guidance: `TypeError` for types, `ValueError` for shapes and NaN."""
    if not isinstance(guidance, Guidance):
        raise TypeError(f"fuse returned a {type(guidance).__name__}; must be a Guidance")
    clients = knowledge.clients
    if not isinstance(guidance.personal, Sequence) or len(guidance.personal) not in (0, len(clients)):
        raise ValueError(f"Guidance.personal must be a list of {len(clients)} tables, one for each client")
    if not isinstance(guidance.absent, Mapping):
        raise TypeError(
            f"Guidance.absent is a {type(guidance.absent).__name__}; must be a dict of tables by client"
        )
    took_part = guidance.absent.keys() & set(clients)
    if took_part:
        raise ValueError(f"Guidance.absent has client {min(took_part)}, which took part in the round")
    others = {} if guidance.for_absent is None else guidance.for_absent
    check_arrays(guidance.memory, "Guidance.memory")
    all_given = (guidance.shared, *guidance.personal, *guidance.absent.values(), others)
    for given in {id(given): given for given in all_given}.values():  # many may share one
        check_arrays(given, "a client's guidance")
        for name, values in given.items():
            _check_numbers(values, name)
    if guidance.weights is not None and not isinstance(guidance.weights, BlockedWeights):
        _check_table(guidance.weights, "weights", [[len(clients)] * 2])
    if guidance.distances is not None:
        _check_table(guidance.distances, "distances", [[len(clients)] * 2])
    if guidance.mixed is not None and knowledge.logits is not None:
        _check_table(guidance.mixed, "mixed predictions", [list(knowledge.logits.shape)])
    if guidance.targets is not None:
        logits = knowledge.logits
        shapes = None if logits is None else [list(logits.shape), list(logits.shape[1:])]
        _check_table(guidance.targets, "targets", shapes)


def _check_table(values: Any, name: str, shapes: list[list[int]] | None) -> None:
    array = isinstance(values, np.ndarray)
    if not array or values.dtype.kind != "f":
        kind = f"an array of {values.dtype}" if array else f"a {type(values).__name__}"
        raise TypeError(f"the guidance's {name} are {kind}; must be a NumPy array of floats")
    shape, wanted = list(values.shape), ""
    if shapes is None and values.ndim not in (2, 3):
        wanted = "[N, M, C] or [M, C]"
    elif shapes is not None and shape not in shapes:
        wanted = f"{shapes[0]}" + (f", or {shapes[1]} shared by all" if len(shapes) > 1 else "")
    if wanted:
        raise ValueError(f"the guidance's {name} have shape {shape}; must be {wanted}")
    _check_numbers(values, name)


def _check_numbers(values: np.ndarray, name: str) -> None:
    if np.issubdtype(values.dtype, np.floating) and np.isnan(values).any():
        raise ValueError(f"the guidance's {name} contain NaN")
