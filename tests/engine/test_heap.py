"""The allocator reuses freed memory."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from fedkd.engine.grid import keep_freed_memory


def faults_of_steps(steps: int) -> int:
    """Return how many pages the system had to find for allocations that are made and freed in turn."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        parts = [torch.ones(4 * 2**18) for _ in range(4)]  # 4 MB each
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's setting")
def test_freed_memory_is_reused(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    if not keep_freed_memory():
        pytest.skip("this C library has no such setting")
    faults_of_steps(3)
    assert faults_of_steps(10) < 4096  # the pages of one of ten steps


def test_allocator_settings_of_the_user_are_respected(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    assert not keep_freed_memory()
