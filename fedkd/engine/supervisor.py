"""A parent process that reports how a run ended when its child cannot.

Ray ends its process with status 1 when its object store has died; a plug-in may call `os._exit`. The parent
also ends processes that Ray leaves behind, and holds signals back while Ray starts.
"""

import ctypes
import mmap
import os
import resource
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from os import (
    _exit,  # while a command runs, `os._exit` is replaced (see `fedkd.plugins.loading.forbid_os_exit`)
)
from pathlib import Path
from typing import NoReturn

from fedkd.errors import RunFailed

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a run to stop."""
ENDED_BY_RAY = 1
"""Status with which Ray ends a process. fedkd has no such status."""
INTERRUPTED_STATUS = 130
POLL_SECONDS = 0.1
SWEEP_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
_HOLDS, _HAS_ENDED = 0, 1  # bytes of the memory that child and parent share

LEAST_ADDRESS_BYTES = 800_000 * 1024
"""Below it torch cannot be loaded, or a library in Rust ends the process with SIGABRT."""

_to_parent: int | None = None
_shared: mmap.mmap | None = None


def run_in_child() -> None:
    """Continue in a child process group; the parent passes on signals and exits with the child's status."""
    global _to_parent, _shared
    if _libc is None or _to_parent is not None:
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    reading, writing = os.pipe()
    shared = mmap.mmap(-1, 2)
    parent = os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the status away
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (*PASSED_ON, signal.SIGCHLD))
    child = os.fork()
    if child:
        os.close(writing)
        _watch(child, reading, shared)
    os.close(reading)
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or a terminal set to `tostop` would stop it as it writes
    signal_on_parent_death(signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        _exit(128 + signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    _to_parent, _shared = writing, shared


def set_loss_message(text: str) -> None:
    """Set the parent's report, if there is one, for a child that ends without one."""
    if _to_parent is not None:
        os.write(_to_parent, f"{text}\n".encode())


def report_end() -> None:
    """Inform the parent, if there is one, that the child has reported its end."""
    if _shared is not None:
        _shared[_HAS_ENDED] = 1


@contextmanager
def held_signals() -> Iterator[None]:
    """Let the parent pass on stop signals only after the block; a second ends the child."""
    if _shared is None:
        yield
        return
    _shared[_HOLDS] = 1
    try:
        yield
    finally:
        _shared[_HOLDS] = 0


def _watch(child: int, told: int, shared: mmap.mmap) -> NoReturn:
    adopt_orphans(True)
    # Waited for, not handled: a handler of Python's does not run while `waitpid` is being entered.
    ignored = {number for number in PASSED_ON if signal.getsignal(number) is signal.SIG_IGN}  # as by nohup
    awaited = {signal.SIGCHLD, signal.SIGTSTP, *PASSED_ON} - ignored
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    held: list[int] = []
    ended = status = 0
    insisted = False
    while not ended:
        if held:
            found = signal.sigtimedwait(awaited, POLL_SECONDS)
            number = None if found is None else found.si_signo
        else:
            number = signal.sigwait(awaited)
        if number == signal.SIGTSTP:
            os.killpg(child, signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.killpg(child, signal.SIGCONT)
        elif number in HELD_BACK and shared[_HOLDS]:
            # A closed terminal sends SIGHUP twice.
            insisted = insisted or (bool(held) and number != signal.SIGHUP)
            held.append(number)
        elif number not in (signal.SIGCHLD, None):
            os.kill(child, number)
        if insisted:
            os.kill(child, signal.SIGKILL)
        elif held and not shared[_HOLDS]:
            os.kill(child, held[0])
            held.clear()
        ended, status = os.waitpid(child, os.WNOHANG)
    end_processes_of_ray()
    code = os.waitstatus_to_exitcode(status)
    if code >= 0 and shared[_HAS_ENDED]:
        _exit(code)
    os.set_blocking(told, False)
    lines = _read(told).splitlines()
    if insisted:
        _leave("stopped at once", lines, INTERRUPTED_STATUS)
    if code == ENDED_BY_RAY:
        how = "Ray ended it, as it does after one of its processes dies"
    elif code >= 0:
        how = f"its process ended with status {code} and no message, as a call of os._exit does"
    else:
        how = f"its process was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += ", as the system does when memory runs out"
    _leave(f"the run broke off; {how}", lines, 3)


def _leave(what: str, lines: list[str], status: int) -> NoReturn:
    print("error:", "; ".join([what, *lines[-1:]]), file=sys.stderr, flush=True)
    _exit(status)


def signal_on_parent_death(number: signal.Signals) -> None:
    """Request a signal from the kernel at the parent's death; Linux only."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans(whether: bool) -> None:
    """Let orphans below this process become its children; Linux only."""
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, int(whether))


def descendant_pids(pid: int) -> list[int]:
    """Return the ids of all processes below one; none without `/proc`."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):  # gone meanwhile
            after = path.read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(after[1]), []).append(int(path.parent.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def end_processes_of_ray(spared: Collection[int] = ()) -> None:
    """End Ray's processes below this one, except some ids: its agents wait a minute for a dead server."""
    deadline = time.monotonic() + SWEEP_SECONDS
    while left := [pid for pid in descendant_pids(os.getpid()) if pid not in spared and _is_rays(pid)]:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)


def _is_rays(pid: int) -> bool:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes()  # empty for a dead one
        return words.startswith(b"ray::") or b"/ray/" in words.split(b"--", 1)[0]
    return False


def _read(descriptor: int) -> str:
    parts = []
    try:
        while part := os.read(descriptor, 65536):
            parts.append(part)
    except BlockingIOError:  # a process of the child holds the other end
        pass
    return b"".join(parts).decode(errors="replace")


def address_limit() -> str | None:
    """Return the limit on this process's address space (`ulimit -v`) in words; None: no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else f"{soft / 1e6:,.0f} MB (ulimit -v {soft // 1024})"


def check_address_space() -> None:
    """Raise `RunFailed` if the address space is too small to load torch."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < LEAST_ADDRESS_BYTES:
        raise RunFailed(
            f"out of memory: the address space is limited to {address_limit()}, and torch alone needs"
            f" {LEAST_ADDRESS_BYTES / 1e6:,.0f} MB"
        )
