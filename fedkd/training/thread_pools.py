"""The pools of threads in the process: torch's, BLAS's, scikit-learn's."""

from __future__ import annotations

import sys
from functools import lru_cache

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]


def thread_pools() -> ThreadpoolController:
    """Return the thread pools of the process's libraries, found anew after more modules were imported.

    The search takes three milliseconds, too long for every small round.
    """
    return _found(len(sys.modules))


@lru_cache(maxsize=1)
def _found(modules: int) -> ThreadpoolController:
    """Return the pools of a process that has imported so many modules."""
    return ThreadpoolController()
