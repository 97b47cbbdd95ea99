"""Settings of the C library's allocator, which keep freed memory for the next step."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD_BYTES = 128 * 2**20
"""Free memory kept at the heap's end."""
MMAP_THRESHOLD_BYTES = 32 * 2**20
"""Least size of pieces mapped by themselves: glibc's maximum."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have this process keep some freed memory; return whether it does.

    By default glibc returns free memory at the heap's end above some hundred kilobytes. A step of a few
    dozen images frees as much and asks for it again at once. New pages may take a quarter of its time.
    Settings from outside stay; other systems have none.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)) and bool(
        mallopt(_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    )
