"""The end of Ray processes is noticed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

import fedkd.engine.ray.process_watch as module
from fedkd.engine.ray.process_watch import (
    GCS,
    RAYLET,
    RayWatch,
    _Child,
    _Gcs,
    _listener,
    _Stranger,
    watch_ray,
)
from fedkd.errors import EngineLost

LISTENS = """
import socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def process():
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.exit(len(sys.stdin.read()))"], stdin=-1
    )
    yield process
    process.kill()
    process.wait()


def test_a_child_that_ends_is_reported(process):
    watch = RayWatch({"raylet": _Child(process)})
    watch.check()
    assert not watch.lost
    process.kill()
    with pytest.raises(EngineLost, match=r"^Ray's raylet was killed by SIGKILL$"):
        watch.check_after_failure()
    assert watch.lost


def test_a_broken_pipe_of_ray_is_reported_by_its_cause(process):
    process.kill()
    with pytest.raises(EngineLost, match="raylet was killed"), RayWatch({"raylet": _Child(process)}).guard():
        raise BrokenPipeError
    with pytest.raises(EngineLost, match=r"^Ray failed: the pipe"), RayWatch().guard():
        raise OSError("the pipe")


def test_a_child_that_exits_is_reported_with_its_status(process):
    process.communicate(b"three")
    with pytest.raises(EngineLost, match="ended with status 5"):
        RayWatch({"raylet": _Child(process)}).check()


def test_the_process_behind_a_socket_is_found_and_watched(tmp_path):
    place = str(tmp_path / "socket")
    words = [sys.executable, "-c", LISTENS, place]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = _Stranger(_listener(place))
        assert _listener(place) == process.pid and found.end() is None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as in a container
        assert found.end() == "died"


def test_a_cluster_is_lost_after_a_long_absence_of_its_gcs(monkeypatch):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        gcs = _Gcs(address)
        now += 1000
        assert gcs.end() is None, "it answers"
    now += module.GCS_LOST_SECONDS - 1
    assert gcs.end() is None, "it may come back"
    now += module.GCS_PROBE_SECONDS + 1
    assert gcs.end() == f"at {address} has not answered for 45 s"


def test_processes_that_ray_depends_on_are_watched(ray_session):
    watch = watch_ray()
    assert watch._watched.keys() == {RAYLET, GCS}
    watch.check()


def test_signals_are_named():
    class Ended:
        def poll(self) -> int:
            return -signal.SIGTERM

    assert _Child(Ended()).end() == "was killed by SIGTERM"  # type: ignore[arg-type]
