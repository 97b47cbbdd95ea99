"""From what a strategy returns to what each client is sent."""

from __future__ import annotations

import numpy as np

from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.fusion.views import Arrays

TARGETS = "targets"
SAMPLES = "samples"


def tables_of(guidance: Guidance, knowledge: Knowledge) -> tuple[dict[int, Arrays], Arrays]:
    """Return what each client receives, by client index, and what all others do; empty where it is nothing.

    Clients that receive the same arrays share one table, so that it can travel once.
    """
    shared = dict(guidance.shared)
    if guidance.targets is not None and knowledge.request is not None:
        # Targets of some transfer samples are of no use without their indices.
        shared.setdefault(SAMPLES, knowledge.request.astype(np.int32))
    if guidance.targets is not None and guidance.targets.ndim == 2:
        shared[TARGETS] = guidance.targets
    nothing: Arrays = {}
    own: dict[int, Arrays] = dict(
        zip(knowledge.clients, guidance.personal or [nothing] * len(knowledge.clients), strict=True)
    )
    if guidance.targets is not None and guidance.targets.ndim == 3:
        pairs = zip(own.items(), guidance.targets, strict=True)
        own = {client: {**arrays, TARGETS: targets} for (client, arrays), targets in pairs}
    own |= guidance.absent
    tables: dict[int, Arrays] = {id(arrays): {**shared, **arrays} for arrays in own.values()}
    by_client = {client: tables[id(arrays)] for client, arrays in own.items()}
    if guidance.for_absent is not None:
        return by_client, {**shared, **guidance.for_absent}
    return by_client, nothing if guidance.is_personal else tables.get(id(nothing), shared)


def check_guidance(guidance: Guidance, knowledge: Knowledge) -> None:
    """Check what a strategy returned: a slip of its own would surface in a client, far from its cause."""
    if not isinstance(guidance, Guidance):
        raise TypeError(f"fuse returned a {type(guidance).__name__}; must be a Guidance")
    targets, logits = guidance.targets, knowledge.logits
    took_part = guidance.absent.keys() & set(knowledge.clients)
    if took_part:
        raise ValueError(f"the guidance for absent clients names client {min(took_part)}, who took part")
    all_given = (guidance.shared, *guidance.personal, *guidance.absent.values(), guidance.for_absent or {})
    arrays = {id(given): given for given in all_given}  # many may share one
    for given in arrays.values():
        for name, values in given.items():
            if np.issubdtype(values.dtype, np.floating) and np.isnan(values).any():
                raise ValueError(f"the guidance's {name} are not all numbers (NaN)")
    if targets is None or logits is None:
        return
    allowed = [list(logits.shape), list(logits.shape[1:])]
    if list(np.shape(targets)) not in allowed:
        raise ValueError(
            f"the guidance's targets have shape {list(np.shape(targets))};"
            f" must be {allowed[0]}, or {allowed[1]} shared by all"
        )
    if np.isnan(targets).any():
        raise ValueError("the guidance's targets are not all numbers (NaN)")
