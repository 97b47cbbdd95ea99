"""The shipped Flower app: a fusion strategy among apps that a Flower user wrote, on Flower's own runtime."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from flwr.app import Context, RecordDict

from fedkd.engine.inline import InlineGrid
from fedkd.federation.compat import RUN_ID, SERVER_NODE_ID, node_id_of

REPOSITORY = Path(__file__).resolve().parents[2]
APP = REPOSITORY / "scenarios" / "flower-app"
NODES = 4


@pytest.fixture
def modules(monkeypatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    """The app's modules of the client and of the server; its torch threads are not for the other tests."""
    import torch

    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(APP)
    yield tuple(importlib.import_module(f"digits_fusion.{name}_app") for name in ("client", "server"))
    torch.set_num_threads(threads)


def in_one_process(modules: tuple[ModuleType, ModuleType], tmp_path: Path) -> dict[str, dict[str, float]]:
    """Run both apps in this process and return what the server has noted of every round."""
    client, server = modules
    run_config = {"local-epochs": 2, "out": str(tmp_path / "inline.json")}

    def context(index: int) -> Context:
        node_config = {"partition-id": index, "num-partitions": NODES}
        return Context(RUN_ID, node_id_of(index), node_config, RecordDict(), run_config)

    grid = InlineGrid(client.app, context, NODES)
    server.app(grid, Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), run_config))
    noted: dict[str, dict[str, float]] = json.loads((tmp_path / "inline.json").read_text())
    return noted


def test_the_flower_app_learns_before_and_after_fusion(modules, tmp_path):
    reached = in_one_process(modules, tmp_path)
    assert list(reached) == ["1", "2", "3"]
    assert 0.2 < reached["1"]["accuracy"] < reached["3"]["accuracy"] < 1.0
    assert all(round["accuracy"] != round["accuracy_before_fusion"] for round in reached.values())


@pytest.mark.slow  # half a minute to enter Flower's runtime, which test_engines_agree.py does
def test_the_flower_app_is_the_same_on_flowers_runtime(modules, tmp_path):
    words = [APP, NODES, "local-epochs=2", f'out="{tmp_path / "flower.json"}"']
    done = subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / "flower.sh"), *map(str, words)],
        timeout=240,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "flower.json").read_text()) == in_one_process(modules, tmp_path)
