"""The pools of threads in the process: torch's, BLAS's, scikit-learn's."""

from __future__ import annotations

import sys
from functools import lru_cache

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]


def thread_pools() -> ThreadpoolController:
    """Return all pools that libraries of the process have, found anew once others may have been loaded.

    Looking for them goes through all that is mapped into memory and takes three milliseconds, which a small
    round would spend again and again. Libraries come with the modules that need them.
    """
    return _found(len(sys.modules))


@lru_cache(maxsize=1)
def _found(modules: int) -> ThreadpoolController:
    """Return the pools of a process that has imported so many modules."""
    return ThreadpoolController()
