"""Matrix products that do not depend on how many cores the server has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedkd.training.device import thread_pools


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Do the block's matrix products on one thread: the split among threads decides a sum's last bit."""
    with thread_pools().limit(limits=1, user_api="blas"):
        yield
