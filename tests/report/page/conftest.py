from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from fedkd.tracking.neighbours import write_neighbours
from fedkd.tracking.recorder import Recorder

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path) -> MakeRun:
    """Return a function that makes a run folder as if it had been run: `make_run(clients=3, rounds=2)`."""

    def make(
        name: str = "run",
        *,
        clients: int = 4,
        rounds: int = 3,
        planned: int | None = None,
        models: Sequence[str] = ("mlp", "cnn"),
        changes: Mapping[str, Any] | None = None,
        strong: float = 0.0,
        fused: bool = True,
        sent: int = 1000,
    ) -> Path:
        folder = tmp_path / name
        tables = {
            "name": "made-up",
            "rounds": planned or rounds,
            "data": {"dataset": "digits", "clients": clients},
            "clients": [{"model": model} for model in models],
            **(changes or {}),
        }
        draws = np.random.default_rng(clients)
        values: dict[tuple[str, str], np.ndarray] = {}
        with Recorder(folder) as recorder:
            for round in range(1, rounds + 1):
                for split, metric, scale in (
                    ("train", "loss", 2.0),
                    ("train", "effective_neighbours", clients),
                    ("global", "accuracy_before_fusion", 0.5),
                    ("global", "accuracy", 0.5),
                    ("global", "fusion_gain", 0.1),
                    ("train", "agreement", 1.0),
                ):
                    values[split, metric] = found = draws.uniform(0, scale, clients) + strong
                    if not fused and metric in ("effective_neighbours", "fusion_gain", "agreement"):
                        continue
                    if not fused and metric == "accuracy":
                        found = values[split, "accuracy_before_fusion"]
                    for client, value in enumerate(found):
                        recorder.metric(metric, value, round=round, client=client, split=split)
                    recorder.metric(metric, found.mean(), round=round, split=split)
                recorder.timing(round=round, phase="train", seconds=1.5, bytes_up=sent, bytes_down=0)
                recorder.timing(round=round, phase="fuse", seconds=0.25, bytes_down=2000)
                if clients <= 50:
                    weights = draws.dirichlet(np.ones(clients), size=clients)
                    write_neighbours(folder, round, range(clients), weights, weights * 2, weights / 2)
        (folder / "scenario.toml").write_text(tomli_w.dumps(tables))
        labels = {"name": "", "classes": ["zero", "one"], "train": [[n, 5] for n in range(clients)]}
        (folder / "clients.json").write_text(json.dumps({"tasks": [labels]}))
        if planned is None:
            sent = {"bytes_up": 1000 * rounds, "bytes_down": 2000 * rounds}
            (folder / "summary.json").write_text(json.dumps({"final": sent, "seconds": 5.25}))
        return folder

    return make


@pytest.fixture
def payload_of() -> Callable[[Path], dict[str, Any]]:
    """Return a function to what the script of a page is given."""

    def read(path: Path) -> dict[str, Any]:
        text = path.read_text(encoding="utf-8")
        found = re.search(r'<script type="application/json" id="payload">(.*?)</script>', text, re.DOTALL)
        assert found is not None
        return json.loads(found[1])

    return read
