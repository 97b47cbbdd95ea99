"""Child processes end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedkd.deployment.children import Children
from fedkd.errors import RunFailed

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone adopts orphans")

PARENT = """
import os, sys, time
from pathlib import Path
from fedkd.deployment.children import Children
folder = Path(sys.argv[1])
with Children(folder) as children:
    children.start("leaves an orphan", ["bash", "-c", {script!r}], os.environ, folder)
    while not (folder / "pids").exists() or len((folder / "pids").read_text().split()) < 2:
        time.sleep(0.02)
    print("started", flush=True)
    {then}
"""
LEAVES_AN_ORPHAN = "setsid sleep 600 & echo $! >> pids; echo $$ >> pids; wait"
DEAF = (
    "trap '' TERM; setsid bash -c \"trap '' TERM; sleep 600\" & echo $! >> pids; echo $$ >> pids; sleep 600"
)


def start(folder: Path, script: str, then: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(script=script, then=then), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


def gone(folder: Path) -> Callable[[], bool]:
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    return lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids)


def soon(condition: Callable[[], bool], patience: float = 60.0) -> bool:
    deadline = time.monotonic() + patience
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_a_failed_check_ends_the_wait_for_a_silent_child(tmp_path):
    said: list[str] = []

    def meanwhile() -> None:
        if said:
            raise RunFailed("no more sense in it")

    with Children(tmp_path) as children:
        with pytest.raises(RunFailed):
            children.run(["bash", "-c", "echo one; sleep 600"], os.environ, tmp_path, said.append, meanwhile)
        status = children.run(["bash", "-c", "echo two; exit 3"], os.environ, tmp_path, said.append)
    assert (said, status) == (["one", "two"], 3)


@pytest.mark.parametrize("then", ["pass", "raise SystemExit(7)", "os.kill(os.getpid(), 2); time.sleep(60)"])
def test_no_child_is_left_after_the_block(tmp_path, then):
    process = start(tmp_path, LEAVES_AN_ORPHAN, then)
    process.wait(timeout=60)
    assert gone(tmp_path)(), "at once: the block does not end before"


def test_a_child_that_ignores_sigterm_is_killed(tmp_path):
    impatient = "import fedkd.deployment.children as them; them.GRACE = 0.3"
    start(tmp_path, DEAF, impatient).wait(timeout=60)
    assert gone(tmp_path)()


def test_children_end_with_a_killed_parent(tmp_path):
    process = start(
        tmp_path, "trap 'kill $!' TERM; sleep 600 & echo $! >> pids; echo $$ >> pids; wait", "time.sleep(60)"
    )
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert soon(gone(tmp_path))
