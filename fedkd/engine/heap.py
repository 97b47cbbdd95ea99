"""Keeping memory that a step has given back for the next one."""

from __future__ import annotations

import ctypes
import os
import sys

KEPT = 128 * 2**20
"""Bytes of free memory at the heap's end that stay there; more goes back to the system."""
OWN_MAPPING = 32 * 2**20
"""Bytes from which on a piece of memory is got from the system by itself, and given back at once: the most
that glibc accepts."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have this process keep a little of the memory that it frees, and return whether it does.

    By default glibc hands back what is free at the heap's end as soon as it is some hundred kilobytes, or a
    few megabytes later on. A step, or a prediction, of a few dozen images frees as much at its end and asks
    for it again at once; then the system finds and clears every page anew, which may take a quarter of the
    time. Other systems' allocators have no such setting, and whoever has set it from outside is left alone.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, KEPT)) and bool(mallopt(_MMAP_THRESHOLD, OWN_MAPPING))
