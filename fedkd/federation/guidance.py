"""From what a strategy returns to what each client is sent."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord

from fedkd.federation import messages as msg
from fedkd.federation.arrays import to_record
from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.fusion.views import Arrays


def guidance_records(guidance: Guidance, knowledge: Knowledge) -> dict[int, ArrayRecord]:
    """Return what each client receives, by client index; empty where there is nothing for it."""
    shared = dict(guidance.shared)
    if guidance.targets is not None and knowledge.request is not None:
        # Targets of some transfer samples are of no use without their indices.
        shared.setdefault(msg.SAMPLES, knowledge.request.astype(np.int32))
    nothing: Arrays = {}
    personal = guidance.personal or [nothing] * len(knowledge.clients)
    own = dict(zip(knowledge.clients, personal, strict=True))
    if guidance.targets is not None and guidance.targets.ndim == 2:
        shared[msg.TARGETS] = guidance.targets
    elif guidance.targets is not None:
        pairs = zip(own.items(), guidance.targets, strict=True)
        own = {client: {**arrays, msg.TARGETS: targets} for (client, arrays), targets in pairs}
    own |= guidance.absent
    # One record for all that receive the same arrays, so that it travels once where it can be shared.
    records = {id(arrays): to_record(shared | dict(arrays)) for arrays in own.values()}
    return {client: records[id(arrays)] for client, arrays in own.items()}


def check_guidance(guidance: Guidance, knowledge: Knowledge) -> None:
    """Check what a strategy returned: a slip of its own would surface in a client, far from its cause."""
    if not isinstance(guidance, Guidance):
        raise TypeError(f"fuse returned a {type(guidance).__name__}; must be a Guidance")
    targets, logits = guidance.targets, knowledge.logits
    if guidance.everyone and (
        guidance.personal or guidance.absent or (targets is not None and targets.ndim == 3)
    ):
        raise ValueError("guidance for everyone must be the same for all, not personal")
    took_part = guidance.absent.keys() & set(knowledge.clients)
    if took_part:
        raise ValueError(f"the guidance for absent clients names client {min(took_part)}, who took part")
    all_given = (guidance.shared, *guidance.personal, *guidance.absent.values())
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
