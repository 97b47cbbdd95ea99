"""Addresses without a usable Ray cluster are refused."""

from __future__ import annotations

import socket
import time

import pytest
from processes import program


@pytest.mark.slow
def test_a_silent_listener_is_no_cluster(digits_toml, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        words = ["--set", "engine.kind=ray", f"engine.address={address}"]
        begun = time.monotonic()
        process = program(["run", str(digits_toml), "--out", str(tmp_path / "out"), "--quiet", *words])
        _, error = process.communicate(timeout=300)
    told = error.splitlines()[-1]  # before it Ray's own warnings
    assert process.returncode == 2 and "Traceback" not in error
    assert f"engine.address: no Ray cluster at '{address}'" in told and "token" in told
    assert time.monotonic() - begun < 200, "not twenty times half a minute"
