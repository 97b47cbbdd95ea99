"""The number of clients that a process keeps in memory."""

import os
from dataclasses import dataclass
from pathlib import Path

from fedkd.clients import build_checked_models, estimate_client_bytes, max_resident_clients
from fedkd.data import Data
from fedkd.plan import Plan
from fedkd.training import resolve_device


@dataclass(frozen=True)
class Room:
    """Number of clients in a process at a time (None: all), and the folder of other states.

    `evaluation_changes`: True if an evaluation without guidance may change a client, as by beginning a task.
    """

    clients: int | None = None
    folder: Path | None = None
    evaluation_changes: bool = True


@dataclass(frozen=True)
class MemoryShare:
    """A process's share of the memory for clients of about `client_bytes`, and of a GPU.

    `processes` is the most on a machine, `folder` the place of idle clients' states.
    """

    client_bytes: int
    processes: int = 1
    gpu_share: float = 1.0
    folder: Path | None = None

    def room(self, plan: Plan) -> Room:
        clients, engine = plan.scenario.engine.live_clients, plan.scenario.engine
        if clients is None:
            here = max(1, int((os.cpu_count() or 1) / engine.cpus_per_actor))
            share = 1 / min(self.processes, here)
            device = resolve_device(engine.device)
            clients = max_resident_clients(self.client_bytes, share, self.gpu_share, device)
        return Room(clients, self.folder, evaluation_changes=plan.learner is not None)


def estimate_capacity(plan: Plan, data: Data) -> tuple[int, int]:
    """Return the number of clients that fit a process here, and the bytes of each."""
    engine, of_client = (
        plan.scenario.engine,
        estimate_client_bytes(plan, data, build_checked_models(plan, data)),
    )
    processes = 1 if engine.kind == "inline" else engine.actors or len(plan.blocks)
    room = MemoryShare(of_client, min(processes, len(plan.blocks)), engine.gpus_per_actor or 1.0).room(plan)
    assert room.clients is not None
    return room.clients, of_client
