"""The parent process reports how a run ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
SPLIT = (
    "import os, signal, subprocess, sys, time\n"
    "from fedkd.engine.supervisor import report_end, held_signals, set_loss_message, run_in_child\n"
    "run_in_child()\n"
)


def start(code: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-c", SPLIT + code], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
    )


@pytest.mark.parametrize("status", [0, 2, 3, 130])
def test_the_parent_exits_with_the_status_of_the_child(status):
    process = start(f"print(os.getppid(), flush=True); report_end(); sys.exit({status})")
    said, error = process.communicate(timeout=60)
    assert (process.returncode, said, error) == (status, f"{process.pid}\n", "")


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("os._exit(1)", "Ray ended it"),
        ("os._exit(0)", "its process ended with status 0 and no message"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "killed by SIGKILL, as the system does when memory runs out",
        ),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
    ],
)
def test_the_parent_reports_a_child_that_ends_silently(end, told):
    process = start(f"set_loss_message('forget this'); set_loss_message('go on so'); {end}")
    said, error = process.communicate(timeout=60)
    assert process.returncode == 3 and said == ""
    assert error.startswith("error: the run broke off; ") and told in error
    assert error.endswith("; go on so\n") and error.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("group", [False, True])
def test_the_child_receives_a_signal_once(number, group):
    code = f"""
seen = []
signal.signal({int(number)}, lambda *_: seen.append(1))
print("ready", flush=True)
while not seen:  # a handler of Python's does not run while a call that blocks is being entered
    time.sleep(0.01)
print("taken", flush=True)
sys.stdin.read()
print(len(seen))
report_end()
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


def test_a_killed_parent_ends_its_child():
    process = start("print('ready', flush=True); signal.pause()")
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    assert process.stdout.read() == "", "the child would hold it open"


def test_a_run_without_a_parent_sends_no_notice():
    from fedkd.engine.supervisor import set_loss_message

    set_loss_message("to nobody")


HOLDING = """
seen = []
signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
with held_signals():
    print("ready", flush=True)
    sys.stdin.readline()
    print(len(seen), flush=True)
while not seen:
    time.sleep(0.01)
print("taken", flush=True)
report_end()
"""


def test_a_held_signal_reaches_the_child_after_the_block():
    process = start(HOLDING)
    assert process.stdout is not None and process.stdin is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    said, error = process.communicate("go on\n", timeout=60)
    assert (process.returncode, said, error) == (0, "0\ntaken\n", "")


def test_a_second_signal_ends_a_child_that_delays_the_first():
    process = start("set_loss_message('start it again')\n" + HOLDING)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    while process.poll() is None:  # the kernel keeps one of a kind, until the parent has taken it
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "error: stopped at once; start it again\n")


def test_leftover_ray_processes_are_ended_and_others_are_not():
    code = """
forks = [
    subprocess.Popen([name, "-c", "import time; time.sleep(600)"], executable=sys.executable,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for name in ("ray::DashboardAgent", "somebody")
]
print(*(fork.pid for fork in forks), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = start(code)
    said, _ = process.communicate(timeout=60)
    agent, other = map(int, said.split())
    try:
        assert process.returncode == 3
        assert not _lives(agent)
        assert _lives(other)
    finally:
        os.kill(other, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
