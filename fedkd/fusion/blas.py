"""Matrix products that do not depend on how many cores the server has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedkd.training.device import thread_pools


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Do the block's matrix products on one thread.

    BLAS splits a product among its threads, and the split decides the last bit of a sum: without this the
    same scenario would give different bytes on 1 and on 2 cores.
    """
    with thread_pools().limit(limits=1, user_api="blas"):
        yield
