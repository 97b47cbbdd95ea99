"""A Ray that starts: tried once more, with more time, where a busy machine needs it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fedkd.address_space import limited_to
from fedkd.engine.ray_lean import replaced
from fedkd.engine.ray_local import environment
from fedkd.errors import EngineLost, described
from fedkd.supervisor import descendants, end_processes_of_ray

Started = TypeVar("Started")

SECONDS = 180
"""How long each step of a start may take, instead of 5 to 60 seconds."""
_LIMITS = {
    "RAY_agent_register_timeout_ms": str(1000 * SECONDS),
    "RAY_gcs_rpc_server_connect_timeout_s": str(SECONDS),
    "RAY_gcs_server_request_timeout_seconds": str(SECONDS),
    "RAY_py_gcs_connect_timeout_s": str(SECONDS),
    "RAY_worker_register_timeout_seconds": str(SECONDS),
}
"""Environment variables that Ray's processes (2.55) read when they start."""


def twice(start: Callable[[], Started]) -> Started:
    """Start a Ray; where it does not come up, once more with more patience.

    Args:
        start: Starts it.

    Raises:
        EngineLost: It did not come up either time.
    """
    others = descendants(os.getpid())
    for patience in (nullcontext, patient):
        try:
            with patience():
                return start()
        except Exception as error:
            failure = error
            end_processes_of_ray(others)
    logs = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "session_latest" / "logs"
    raise EngineLost(
        f"Ray did not start, twice: {described(failure)}{_likely_cause()}; its logs: {logs}"
    ) from failure


@contextmanager
def patient() -> Iterator[None]:
    """Have a Ray that is started in the block wait longer for its own processes."""
    from ray._private import services

    # Ray waits 30 seconds for its node to register and has no setting for it.
    with environment(_LIMITS), replaced(services, "get_node", partial(_node, services.get_node)):
        yield


def _node(get_node: Any, gcs_address: str, node_id: str) -> Any:
    """Return what Ray knows of a node, once it knows it.

    Raises:
        RuntimeError: It does not in time.
    """
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return get_node(gcs_address, node_id)
        except RuntimeError:
            if time.monotonic() >= deadline or not _has_raylet():
                raise
            time.sleep(0.5)


def _has_raylet() -> bool:
    """Return whether a raylet runs below this process, as far as the system tells."""
    if not Path("/proc/self/cmdline").exists():
        return True
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            if b"/raylet/raylet" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
    return False


def _likely_cause() -> str:
    """Return, as the end of a sentence, why Ray may not have started; nothing where nothing hints at it."""
    if (limit := limited_to()) is not None:
        return f"; the address space is limited to {limit}, which is the likely cause"
    load, cpus = os.getloadavg()[0], len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if load <= cpus:
        return ""
    return f"; the machine is busy (load {load:.0f}, {cpus} CPUs), which is the likely cause"
