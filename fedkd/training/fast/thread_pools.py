"""Thread pools of numerical libraries, without torch."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from threadpoolctl import ThreadpoolController


def thread_pools() -> ThreadpoolController:
    """Return the process's thread pools; new imports trigger a new search (3 ms)."""
    return _found(len(sys.modules))


@lru_cache(maxsize=1)
def _found(modules: int) -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Use one thread for matrix products in the block: a split among threads changes last bits."""
    with thread_pools().limit(limits=1, user_api="blas"):
        yield
