"""A real SuperLink with SuperNodes equals the simulation."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
import tomli_w
from deployed_nodes import SMALL
from safetensors.numpy import load_file

import fedkd

REPOSITORY = Path(__file__).resolve().parents[2]
SCENARIO = SMALL | {
    "rounds": 3,
    "evaluate_every": 3,
    "data": SMALL["data"] | {"clients": 2},
    "clients": [{"model": "lenet"}, {"model": "random-forest", "args": {"trees": 3}}],
}
"""A message is a process of its own there, which imports torch: two clients and one evaluation are enough."""


def processes_with(mark: str) -> list[str]:
    """Return the command lines of all processes that have inherited an environment variable."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.mark.alone
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_real_supernodes_equal_the_simulation_byte_for_byte(tmp_path):
    scenario, out, kept = tmp_path / "scenario.toml", tmp_path / "run", tmp_path / "kept"
    scenario.write_text(tomli_w.dumps(SCENARIO))
    home, temporary, here = (tmp_path / name for name in ("home", "tmp", "here"))
    for folder in (home, temporary, here):
        folder.mkdir()
    mark = f"FEDKD_TEST={uuid4().hex}"
    environment = os.environ | {
        **dict([mark.split("=")]),
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "PYTHON": sys.executable,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    process = subprocess.Popen(
        ["bash", str(REPOSITORY / "scripts" / "federation.sh"), str(scenario), str(out), "--keep", str(kept)],
        cwd=here,
        env={key: value for key, value in environment.items() if not key.startswith("XDG_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = process.communicate(timeout=540)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    simulated = fedkd.run(scenario, out=tmp_path / "simulated", progress=False, report=False).folder
    assert (out / "metrics.jsonl").read_bytes() == (simulated / "metrics.jsonl").read_bytes()

    assert processes_with(mark) == []
    address = re.search(r"SuperLink at 127\.0\.0\.1:(\d+)", said)
    assert address is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address[1])), timeout=5)
    left = {
        str(path.relative_to(tmp_path)) for folder in (home, temporary, here) for path in folder.rglob("*")
    }
    assert left == set(), "a file outside its folder"
    states = list(kept.glob("nodes/client-*/runs/*/now.safetensors"))
    assert len(states) == 2 and all(load_file(state) for state in states), "what they learned, they have"
