"""Settings of the C library's allocator: keep the memory that a step frees for the next one."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD_BYTES = 128 * 2**20
"""Free memory at the heap's end that stays there; more goes back to the system."""
MMAP_THRESHOLD_BYTES = 32 * 2**20
"""Pieces of this size or more are got from the system by themselves: the most that glibc accepts."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have this process keep some of the memory that it frees; return whether it does.

    By default glibc hands back what is free at the heap's end from some hundred kilobytes on. A step of a
    few dozen images frees as much and asks for it again at once. The system then finds and clears every page
    anew, which may take a quarter of the time. Settings from outside stay; other systems have none.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)) and bool(
        mallopt(_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    )
