"""A local Ray serves one run only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedkd.engine.compat import LOOPBACK_ALONE, environment

REPOSITORY = Path(__file__).resolve().parent.parent.parent

RUN = """
import json, os, sys
from pathlib import Path

before = dict(os.environ)
from fedkd.engine.compat import LOOPBACK_ALONE
from fedkd.engine.ray.cluster import connect_ray
from fedkd.scenario.schema import Engine

cluster = connect_ray(Engine(cpus_per_actor=0.1))
import ray
from ray import _raylet
from ray._private import ray_constants, worker

worked = ray.get(ray.remote(lambda: 41).remote())


def children(pid):
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from children(child)


def sockets(pid):
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            yield os.readlink(descriptor).removeprefix("socket:[").removesuffix("]")
        except OSError:
            continue


def words(pid):
    return Path(f"/proc/{pid}/cmdline").read_text().replace(chr(0), " ")


spared = ("dashboard/dashboard.py", "monitor.py")
useless = [words(pid) for pid in children(os.getpid()) if any(name in words(pid) for name in spared)]
own = {inode for pid in [os.getpid(), *children(os.getpid())] for inode in sockets(pid)}
listening = set()
for table in ("tcp", "tcp6"):
    for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and words[9] in own:
            listening.add(words[1].rpartition(":")[0])
address = ray.get_runtime_context().gcs_address
changed = [name for name, value in os.environ.items() if before.get(name) != value]
left = [name for name in changed if "AUTH" in name or name in ("RAY_RAYLET_PID", LOOPBACK_ALONE)]
print(json.dumps([worked, address, sorted(listening), left, useless]), flush=True)
sys.stdin.readline()
cluster.close()
asks = _raylet.get_authentication_mode() == _raylet.AuthenticationMode.TOKEN
token = _raylet.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
print(json.dumps([asks, token, ray_constants.ENABLE_RAY_CLUSTER]))
"""

INTRUDE = """
import sys
from ray._raylet import GcsClient

try:
    GcsClient(address=sys.argv[1])
except Exception as error:
    print(type(error).__name__)
else:
    print("welcome")
"""

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""As the kernel writes 127.0.0.1, the same as an IPv6 address, and ::1."""


@pytest.mark.alone
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_other_processes_cannot_reach_a_local_ray():
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    clean |= {"PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", RUN], env=clean, **pipes) as process:
        worked, address, listening, left, useless = json.loads(process.stdout.readline())
        assert worked == 41
        assert useless == [], "nobody looks at a dashboard, reads logs, or wants more nodes"
        assert left == [], "what else the process starts learns no token"
        assert listening and set(listening) <= LOOPBACK
        answers = {}
        for name, token in {
            "none": {},
            "wrong": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        }.items():
            words = [sys.executable, "-c", INTRUDE, address]
            done = subprocess.run(words, env=clean | token, capture_output=True, text=True, timeout=300)
            answers[name] = done.stdout
        said, _ = process.communicate("\n", timeout=300)
    assert answers == {"none": "AuthenticationError\n", "wrong": "AuthenticationError\n"}
    assert json.loads(said) == [False, False, True], "a Ray of later is as it would have been"


def test_the_environment_is_restored(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv(LOOPBACK_ALONE, raising=False)
    with pytest.raises(ZeroDivisionError), environment({"RAY_AUTH_MODE": "x", LOOPBACK_ALONE: "0"}):
        assert (os.environ["RAY_AUTH_MODE"], os.environ[LOOPBACK_ALONE]) == ("x", "0")
        raise ZeroDivisionError
    assert os.environ["RAY_AUTH_MODE"] == "token" and LOOPBACK_ALONE not in os.environ
