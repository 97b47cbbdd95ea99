"""Watch over Ray's processes: callers check here first, as Ray ends the program after a loss."""

import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol

from fedkd.engine.compat import own_ray_node
from fedkd.errors import EngineLost

SETTLE_SECONDS = 1.0
"""Seconds after a failed call until a process is seen dead."""
GCS_PROBE_SECONDS = 5.0
GCS_LOST_SECONDS = 40.0
"""Seconds that a joined cluster's GCS may be away, below Ray's own limit of a minute."""
RAYLET, GCS = "raylet", "gcs_server"


class Watched(Protocol):
    """A process that Ray depends on."""

    def end(self) -> str | None:
        """Return how it ended, as in "was killed by SIGKILL"; None while it lives."""


class RayWatch:
    """Watches the processes behind Ray; after one is `lost`, no call of Ray's is safe."""

    def __init__(self, watched: Mapping[str, Watched] | None = None) -> None:
        self._watched = dict(watched or {})
        self.lost = False

    def check(self) -> None:
        for name, process in self._watched.items():
            how = process.end()
            if how is not None:
                self.lost = True
                raise EngineLost(f"Ray's {name} {how}")

    def check_after_failure(self) -> None:
        """Check repeatedly for a moment: of two processes that die together, either may be seen first."""
        deadline = time.monotonic() + (SETTLE_SECONDS if self._watched else 0.0)
        while True:
            self.check()
            if time.monotonic() >= deadline:
                return
            time.sleep(0.05)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn an `OSError` of Ray's sockets into `EngineLost`, which blames no file of the run."""
        try:
            yield
        except OSError as error:
            self.check_after_failure()
            raise EngineLost(f"Ray failed: {error}") from error


def watch_ray() -> RayWatch:
    """Return a watch over this process's connection to Ray."""
    node = own_ray_node()
    if node is None:  # connected through Ray's client server
        return RayWatch()
    started = {name: infos[0].process for name, infos in node.all_processes.items() if infos}
    if RAYLET in started:
        return RayWatch({name: _Child(started[name]) for name in (RAYLET, GCS) if name in started})
    watched: dict[str, Watched] = {}
    with suppress(OSError, AttributeError):
        watched[RAYLET] = _Stranger(_listener(node.raylet_socket_name))
    with suppress(ValueError, AttributeError):
        watched["GCS"] = _Gcs(node.gcs_address)
    return RayWatch(watched)


class _Child:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def end(self) -> str | None:
        status = self._process.poll()
        if status is None:
            return None
        if status >= 0:
            return f"ended with status {status}"
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"


class _Stranger:
    """Another user's process on this machine; a missing one raises `OSError` or `AttributeError`."""

    def __init__(self, pid: int) -> None:
        # The id alone could belong to another process by then, or to a zombie.
        self._file = os.pidfd_open(pid)

    def end(self) -> str | None:
        return "died" if select.select([self._file], [], [], 0)[0] else None

    def __del__(self) -> None:
        with suppress(AttributeError):
            os.close(self._file)


class _Gcs:
    """The GCS of a cluster at ``host:port``: alive if it can be reached."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address = address
        self._place = host.strip("[]"), int(port)
        self._asked = self._seen = time.monotonic()

    def end(self) -> str | None:
        now = time.monotonic()
        if now - self._asked >= GCS_PROBE_SECONDS:
            try:
                socket.create_connection(self._place, timeout=1.0).close()
                self._seen = now
            except OSError:
                pass
            self._asked = time.monotonic()
        away = self._asked - self._seen
        return f"at {self._address} has not answered for {away:.0f} s" if away >= GCS_LOST_SECONDS else None


def _listener(path: str) -> int:
    """Return the process that listens at a socket of this machine; raise `OSError` if that is unknown."""
    if not hasattr(socket, "SO_PEERCRED"):
        raise OSError("the system does not report it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        connection.connect(path)
        packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, _, _ = struct.unpack("3i", packed)
    if pid == 0:  # it lives in another namespace of processes
        raise OSError("this process cannot see it")
    return pid
