"""The parent over a run: what the run cannot tell of itself, it tells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
SPLIT = "import os, signal, sys; from fedkd.supervisor import if_lost, split_off; split_off();"


def start(code: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-c", SPLIT + code], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
    )


@pytest.mark.parametrize("status", [0, 2, 3, 130])
def test_the_childs_status_is_the_parents(status):
    process = start(f"print(os.getppid(), flush=True); sys.exit({status})")
    said, error = process.communicate(timeout=60)
    assert (process.returncode, said, error) == (status, f"{process.pid}\n", "")


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("os._exit(1)", "Ray ended it"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "killed by SIGKILL, as the system does when memory runs out",
        ),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
    ],
)
def test_a_child_that_ends_without_a_word_has_one_said_for_it(end, told):
    process = start(f"if_lost('forget this'); if_lost('go on so'); {end}")
    said, error = process.communicate(timeout=60)
    assert process.returncode == 3 and said == ""
    assert error.startswith("error: the run broke off; ") and told in error
    assert error.endswith("; go on so\n") and error.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("group", [False, True])
def test_a_signal_reaches_the_child_once(number, group):
    code = f"""
import time
seen = []
signal.signal({int(number)}, lambda *_: seen.append(1))
print("ready", flush=True)
while not seen:  # a handler of Python's does not run while a call that blocks is being entered
    time.sleep(0.01)
print("taken", flush=True)
sys.stdin.read()
print(len(seen))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", SPLIT + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdin is not None
    process.stdout.readline()
    (os.killpg if group else os.kill)(process.pid, number)
    assert process.stdout.readline() == "taken\n"
    said, _ = process.communicate(timeout=60)
    assert said == "1\n" and process.returncode == 0


def test_a_parent_that_is_killed_takes_its_child_along():
    process = start("print('ready', flush=True); signal.pause()")
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    assert process.stdout.read() == "", "the child would hold it open"


def test_nobody_is_told_where_there_is_no_parent():
    from fedkd.supervisor import if_lost

    if_lost("to nobody")
