"""Thread pools of numerical libraries, without torch."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from threadpoolctl import ThreadpoolController


def thread_pools() -> ThreadpoolController:
    """Return the process's thread pools, searched (3 ms) only after more modules were imported."""
    return _found(len(sys.modules))


@lru_cache(maxsize=1)
def _found(modules: int) -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Do the block's matrix products on one thread: the split among threads decides a sum's last bit."""
    with thread_pools().limit(limits=1, user_api="blas"):
        yield
