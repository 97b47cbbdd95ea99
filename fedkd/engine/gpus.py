"""Whether there are the GPUs that a scenario reserves for its actors."""

from __future__ import annotations

from fedkd.errors import UserError
from fedkd.scenario.schema import Engine

KEY = "engine.gpus_per_actor"


def check_gpus(share: float, most: float, where: str) -> None:
    """Refuse a share of GPUs that no node has.

    Args:
        share: GPUs that an actor reserves.
        most: GPUs of the node that has most.
        where: Who has them, e.g. ``"the Ray cluster has"``.

    Raises:
        UserError: What there is.
    """
    if share > 0 and most == 0:
        raise UserError(f"asks for {share:g} GPU an actor, but Ray sees no GPU here; set it to 0", key=KEY)
    if most < share:
        raise UserError(f"asks for {share:g} GPUs an actor, but {where} {most:g}", key=KEY)
    if share > 1 and share % 1:
        raise UserError(f"must be a whole number above 1, got {share:g}", key=KEY)


def check_local_gpus(engine: Engine) -> None:
    """Refuse, without starting Ray, what a run on this machine alone would refuse of its GPUs.

    Raises:
        UserError: What there is.
    """
    if engine.kind != "ray" or engine.address is not None or not engine.gpus_per_actor:
        return
    import torch

    check_gpus(engine.gpus_per_actor, torch.cuda.device_count(), "this machine has")
