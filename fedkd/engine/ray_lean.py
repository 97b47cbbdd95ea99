"""A Ray that is started for one run, without the processes of it that serve nobody there.

With a Ray of one's own come an autoscaler's monitor, a reader of logs and a web server for a dashboard, which
`ray.init` waits for even where there is to be none: a second and a half of a CPU before anything can begin.
Ray (2.55) has no setting for it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_SPARED = {"no_monitor": True, "include_log_monitor": False}


@contextmanager
def lean() -> Iterator[None]:
    """Have a Ray that is started in the block be one without them, as far as it knows of them."""
    from ray._private import node, parameter

    with ExitStack() as changed:
        params = getattr(parameter, "RayParams", None)
        if params is not None:
            known = inspect.signature(params).parameters
            spared = {name: value for name, value in _SPARED.items() if name in known}
            changed.enter_context(replaced(parameter, "RayParams", functools.partial(params, **spared)))
        if hasattr(node.Node, "start_api_server"):
            changed.enter_context(replaced(node.Node, "start_api_server", _start_none))
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Have an attribute be another one in the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _start_none(self: Any, *args: Any, **options: Any) -> None:
    self._webui_url = ""
