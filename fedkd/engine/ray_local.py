"""A Ray that is started for one run: on the loopback address alone, and behind a token of its own.

Left to itself, Ray listens on all addresses of the machine and runs whatever anybody sends who reaches it.
What keeps it to this machine, and to whoever knows the token, stands in the environment and in Ray's own
settings, and is put back: a Ray that somebody starts or joins later in this process is as it would have been.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

LOOPBACK_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, it has Ray (2.55) take the loopback address for that of the node, on Linux too."""


@contextmanager
def secluded() -> Iterator[Seclusion]:
    """Have the Ray that is started in the block be for this process alone; yield what ends that.

    After the block the environment is again what it was: what else this process starts learns no token.
    """
    from ray._private import ray_constants

    seclusion = Seclusion()
    is_cluster = ray_constants.ENABLE_RAY_CLUSTER  # read from the environment when Ray was loaded
    ray_constants.ENABLE_RAY_CLUSTER = False
    with environment({LOOPBACK_ALONE: "0", **seclusion.begin()}):
        try:
            yield seclusion
        except BaseException:
            seclusion.end()
            raise
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = is_cluster


def allowed_cpus() -> int | None:
    """Return the CPUs that this process may run on, where they are fewer than Ray (2.55) would count.

    Ray asks the machine, or its container, but not what a batch system or ``taskset`` leaves to this process.
    """
    from ray._private.utils import get_num_cpus

    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = len(os.sched_getaffinity(0))
    return allowed if allowed < get_num_cpus(override_docker_cpu_warning=True) else None


class Seclusion:
    """The token of a local Ray, which this process shows with every call."""

    def __init__(self) -> None:
        self._mode: str | None = None

    def begin(self) -> dict[str, str]:
        """Have this process ask for a token; return the environment in which Ray's processes do.

        Empty where Ray has no tokens.
        """
        _raylet = _ray_library()
        if not hasattr(_raylet, "AuthenticationTokenLoader"):
            return {}
        had_token = _raylet.get_authentication_mode() == _raylet.AuthenticationMode.TOKEN
        self._mode = "token" if had_token else "disabled"
        self._set_mode("token")
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

    def end(self) -> None:
        """Have this process be as it was; Ray has to have been shut down."""
        if self._mode is not None:
            self._set_mode(self._mode)
            self._mode = None

    @staticmethod
    def _set_mode(mode: str) -> None:
        _raylet = _ray_library()
        _raylet.Config.initialize(json.dumps({"AUTH_MODE": mode}))
        _raylet.AuthenticationTokenLoader.instance().reset_cache()


def _ray_library() -> Any:
    from ray import _raylet

    return _raylet


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Have environment variables be others in the block."""
    before: dict[str, Any] = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
