"""A bounded cache of what the runs of one process have in common, such as data and recorded steps."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

MOST_BYTES = 256 * 2**20


class RunCache:
    """Values by a key of everything that decides them; beyond `most` bytes the least recent ones leave."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most, self._bytes = most, 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable) -> Any | None:
        """Return the value of a key; None: there is none."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep a new key's value of `size` bytes, unless it takes more than half of the cache."""
        if 2 * size > self._most:
            return
        self._kept[key] = value, size
        self._bytes += size
        while self._bytes > self._most:
            self._bytes -= self._kept.popitem(last=False)[1][1]


_of_process = RunCache()
_current: ContextVar[RunCache | None] = ContextVar("run_cache", default=None)


@contextmanager
def shared_between_runs() -> Iterator[None]:
    """Let the runs in the block use the cache of this process."""
    token = _current.set(_of_process)
    try:
        yield
    finally:
        _current.reset(token)


def run_cache() -> RunCache | None:
    """Return the cache that the present run may use; None: it shares nothing."""
    return _current.get()


def once_for_runs(key: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
    """Return the value of a key, from the cache of the present run if there is one."""
    cache = run_cache()
    found: T | None = None if cache is None else cache.get(key)
    if found is None:
        found = make()
        if cache is not None:
            cache.put(key, found, size(found))
    return found
