"""Every strategy on every kind of samples with classes: it runs, or says in one line why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedkd
from fedkd.errors import UserError
from fedkd.fusion.capabilities import capabilities_of
from fedkd.fusion.registry import STRATEGIES
from fedkd.plan.load import parse_plan
from fedkd.simulation.scenario_check import check_plan

pytestmark = pytest.mark.usefixtures("no_report")

ROWS, CLIENTS = 120, 2


def images(folder: Path) -> dict[str, Any]:
    return {"dataset": "digits"}


def vectors(folder: Path) -> dict[str, Any]:
    y = np.arange(ROWS) % 3
    x = np.random.default_rng(0).normal(y[:, None], 1.0, (ROWS, 4))
    np.savez(folder / "vectors.npz", x=x, y=y)
    return {"dataset": "npz", "args": {"path": str(folder / "vectors.npz")}}


def tables(folder: Path) -> dict[str, Any]:
    lines = [f"{n % 3 + n % 7 / 10},{'abc'[n % 3]},{'xyz'[n % 5 % 3]}" for n in range(ROWS)]
    (folder / "rows.csv").write_text("\n".join(["number,label,category", *lines]) + "\n")
    return {"dataset": "table", "args": {"path": str(folder / "rows.csv"), "columns": {"label": "label"}}}


def texts(folder: Path) -> dict[str, Any]:
    words = ("red apple", "green pear tree", "blue sky")
    lines = [f"{words[n % 3]} number {n % 7},{n % 3}" for n in range(ROWS)]
    (folder / "texts.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    columns = {"text": "text", "label": "label"}
    tokenizer = {"kind": "words", "length": 8}
    args = {"path": str(folder / "texts.csv"), "columns": columns, "tokenizer": tokenizer}
    return {"dataset": "table", "args": args, "normalise": False}


def series(folder: Path) -> dict[str, Any]:
    return {"dataset": "waveform", "args": {"samples": 60, "test": 30}}


KINDS: dict[str, tuple[Callable[[Path], dict[str, Any]], dict[str, Any]]] = {
    "image": (images, {"model": "mlp", "args": {"hidden": [8]}}),
    "vector": (vectors, {"model": "mlp", "args": {"hidden": [8]}}),
    "table": (tables, {"model": "mlp", "args": {"hidden": [8]}}),
    "text": (texts, {"model": "bag", "args": {"width": 8}}),
    "series": (series, {"model": "cnn1d", "args": {"filters": [8], "sizes": [3]}}),
}
"""Tiny data of each kind, written into a folder, and a model for it; a new kind is a row here."""

ADAPTERS = ("fedit", "ffa_lora", "flexlora", "flora", "hetlora")
SERVER_MODELS = ("fedet", "fedhkt", "mhat")
STREAMS = ("fedmask", "target", "fedweit")
"""Strategies that need a stream of tasks, whatever the kind."""
REFUSED: dict[tuple[str, str], str] = {
    ("fml", "text"): "'mlp' takes images [C, H, W] or vectors",  # the default of shared_model
    ("fedkd_wu", "text"): "'mlp' takes images [C, H, W] or vectors",
}
"""The start of what a strategy says before the run about a kind that it cannot take."""

PREDICTING = [
    name
    for name in STRATEGIES.builtin
    if capabilities_of(STRATEGIES.load(name)).sends != "nothing" and name not in STREAMS
]


def settings(strategy: str, model: dict[str, Any]) -> dict[str, Any]:
    """Return the tables that a strategy needs: its own keys, adapters, or links between clients."""
    fusion, more = {"strategy": strategy}, dict[str, Any]()
    if strategy in SERVER_MODELS:
        fusion |= {"server_model": model["model"]}
    if strategy == "fedmrl":
        fusion |= {"shared_model": model["model"], "shared_args": model["args"]}
    if strategy in ADAPTERS:
        model = model | {"adapter": {"rank": 2, "targets": "all", "train_head": False}}
    if strategy == "gossip":
        more["topology"] = {"graph": "complete"}
    return {"fusion": fusion, "clients": [model], **more}


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, Any]]:
    """Return the scenario of a strategy on a kind."""
    folder = tmp_path_factory.mktemp("kinds")
    data = {kind: write(folder) for kind, (write, _) in KINDS.items()}
    fixed = {"clients": CLIENTS, "partition": {"scheme": "iid", "samples_per_client": 20}, "test_size": 20}

    def made(strategy: str, kind: str) -> dict[str, Any]:
        return {
            "name": f"{strategy}-{kind}",
            "rounds": 1,
            "data": data[kind] | fixed | {"transfer": {"size": 12}},
            "training": {"local_epochs": 1, "optimizer": "sgd", "lr": 0.1},
            "engine": {"kind": "inline"},
            **settings(strategy, KINDS[kind][1]),
        }

    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", PREDICTING)
def test_a_strategy_takes_a_kind_or_says_why_not(strategy, kind, scenario, tmp_path):
    told = REFUSED.get((strategy, kind))
    if told is not None:
        with pytest.raises(UserError) as refused:
            list(check_plan(parse_plan(scenario(strategy, kind))))
        assert refused.value.message.startswith(told) and "\n" not in str(refused.value)
        return
    run = fedkd.run(scenario(strategy, kind), out=tmp_path / "run", progress=False)
    assert run.summary["status"] == "done"
    assert all(
        np.isfinite(run.summary["final"][name]["mean"]) for name in ("accuracy_local", "accuracy_global")
    )
