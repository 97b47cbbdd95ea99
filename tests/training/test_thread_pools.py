"""Pools of threads are looked for when there may be other ones, and not each time."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
from threadpoolctl import threadpool_info

from fedkd.training.device import limit_all_threads
from fedkd.training.fast.thread_pools import one_blas_thread, thread_pools


def numbers(api: str) -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == api}


def test_thread_pools_are_searched_again_after_an_import(monkeypatch):
    pools = thread_pools()
    assert thread_pools() is pools
    monkeypatch.setitem(sys.modules, "a_module_that_brings_a_library", ModuleType("brings"))
    assert thread_pools() is not pools


def test_thread_limits_hold_within_the_block_only():
    np.eye(2) @ np.eye(2)
    before = threadpool_info()
    with limit_all_threads(2):
        assert numbers("blas") == {2}
        with one_blas_thread():
            assert numbers("blas") == {1}
        assert numbers("blas") == {2}
    assert threadpool_info() == before
