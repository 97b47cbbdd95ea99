"""A parent that outlives its run: it tells of an end that the run could not tell of itself.

Ray ends the process that uses it, with status 1 and without a word, when the store of its objects has died;
its own threads do so, at any moment. So the command line does the work of a run on Ray in a child process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
ENDED_BY_RAY = 1
"""Status with which Ray ends a process. fedkd has no such status."""
_PR_SET_PDEATHSIG = 1

_to_parent: int | None = None


def split_off() -> None:
    """Go on in a child process, in a process group of its own; the parent leaves with the child's status.

    Whatever signal the parent is sent reaches the child, SIGKILL included, and once: on a terminal only the
    parent is in the foreground. Elsewhere than on Linux nothing happens.
    """
    global _to_parent
    if not sys.platform.startswith("linux") or _to_parent is not None:
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    reading, writing = os.pipe()
    parent = os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the status away
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (*PASSED_ON, signal.SIGCHLD))
    child = os.fork()
    if child:
        os.close(writing)
        _watch(child, reading)
    os.close(reading)
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or a terminal set to `tostop` would stop it as it writes
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os._exit(128 + signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    _to_parent = writing


def if_lost(text: str) -> None:
    """Have the parent, if there is one, say this should the child end without a word."""
    if _to_parent is not None:
        os.write(_to_parent, f"{text}\n".encode())


def _watch(child: int, told: int) -> NoReturn:
    # Waited for, not handled: a handler of Python's does not run while `waitpid` is being entered.
    ignored = {number for number in PASSED_ON if signal.getsignal(number) is signal.SIG_IGN}  # as by nohup
    awaited = {signal.SIGCHLD, signal.SIGTSTP, *PASSED_ON} - ignored
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    ended = status = 0
    while not ended:
        number = signal.sigwait(awaited)
        if number == signal.SIGTSTP:
            os.killpg(child, signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.killpg(child, signal.SIGCONT)
        elif number != signal.SIGCHLD:
            os.kill(child, number)
        ended, status = os.waitpid(child, os.WNOHANG)
    code = os.waitstatus_to_exitcode(status)
    if code not in (ENDED_BY_RAY,) and code >= 0:
        os._exit(code)
    os.set_blocking(told, False)
    lines = _read(told).splitlines()
    how = "Ray ended it, as it does when a process of its own has died"
    if code < 0:
        how = f"its process was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += ", as the system does when memory runs out"
    print("error:", "; ".join(["the run broke off", how, *lines[-1:]]), file=sys.stderr, flush=True)
    os._exit(3)


def _read(descriptor: int) -> str:
    parts = []
    try:
        while part := os.read(descriptor, 65536):
            parts.append(part)
    except BlockingIOError:  # somebody whom the child has started holds the other end
        pass
    return b"".join(parts).decode(errors="replace")
