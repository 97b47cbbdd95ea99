#!/usr/bin/env python
"""Prove that a change moves no result.

Usage: same_bytes.py record|compare FOLDER [--match WORD …]

``record`` runs every shipped scenario, shortened, and a small federation of every strategy and learner.
It keeps each run's `metrics.jsonl` in FOLDER. ``compare`` runs them again and names the runs whose metrics
differ in a byte, but for the names in `RENAMED`. Exit status 1: some differ. Run it with `FEDKD_DATA` set.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HERE), *(str(HERE / "tests" / one) for one in ("", "golden", "repository", "support"))]

import fedkd  # noqa: E402
from fedkd.continual.registry import LEARNERS  # noqa: E402
from fedkd.fusion.registry import STRATEGIES  # noqa: E402

RENAMED: Mapping[str, str] = {
    "accuracy_trained": "accuracy_before_fusion",
    "bank_bytes": "knowledge_cache_bytes",
}
"""Metrics by the names of version 0.2, and by today's."""
OLD_RUNS: Mapping[str, str] = {
    "strategy-centralized": "strategy-pooled",
    "strategy-max_confidence": "strategy-dp",
    "strategy-fedkd_wu": "strategy-fedkd",
}
"""Runs by today's name, and by that of version 0.2."""

MLP = {"model": "mlp", "args": {"hidden": [16]}}
SMALL: dict[str, Any] = {
    "name": "same-bytes",
    "seed": 7,
    "rounds": 2,
    "data": {
        "dataset": "digits",
        "clients": 3,
        "partition": {"scheme": "dirichlet", "alpha": 1.0, "samples_per_client": 40},
        "transfer": {"source": "holdout", "size": 40},
        "test_size": 60,
    },
    "clients": [MLP],
    "training": {"lr": 0.01, "batch_size": 20},
    "engine": {"kind": "inline"},
}
SGD = {"training": {"lr": 0.05, "batch_size": 20, "optimizer": "sgd"}}
STREAM = {
    "continual": {
        "learner": "naive",
        "rounds_per_task": 1,
        "tasks": {"kind": "split", "count": 2, "classes_per_task": 3},
    },
    "rounds": None,
}
SERVER = {"server_model": "mlp", "server_args": {"hidden": [16]}, "server_epochs": 2}
STRATEGY: Mapping[str, dict[str, Any]] = {
    "scaffold": SGD,
    "pfedme": SGD,
    "gossip": {"topology": {"graph": "ring"}},
    "cfd": {"fusion": SERVER},
    "fedet": {"fusion": SERVER},
    "mhat": {"fusion": SERVER},
    "fedhkt": {"fusion": SERVER | {"clusters": 2}},
    "fedgen": {"fusion": {"server_steps": 5}},
    "fedgkt": {"fusion": {"server_epochs": 2, "server_hidden": [16]}},
    "fedkd_wu": {"fusion": {"shared_args": {"hidden": [8]}}},
    "fedmrl": {"fusion": {"shared_args": {"hidden": [8]}}},
    "fml": {"fusion": {"shared_args": {"hidden": [8]}}},
    "moon": {"clients": [{"model": "mlp", "args": {"hidden": [16], "projection": 8}}]},
    "target": STREAM
    | {"fusion": {"samples": 20, "synthesis_batch_size": 20, "generator_steps": 2}, "class_stream": True},
    "fedmask": STREAM | {"learner": "supsup"},
    "fedweit": STREAM | {"learner": "fedweit"},
    "feddf": {"fusion": {"server_epochs": 2}},
}
"""What a strategy wants besides its name."""


def of_strategies() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tables of a small run of every strategy."""
    for name in sorted(STRATEGIES.builtin):
        own = dict(STRATEGY.get(name, {}))
        fusion, learner = own.pop("fusion", {}), own.pop("learner", None)
        if own.pop("class_stream", False):
            tasks = {"kind": "split", "count": 2, "classes_per_task": 3}
            own["continual"] = {"learner": "naive", "rounds_per_task": 1, "tasks": tasks, "head": "class"}
        if learner:
            own["continual"] = STREAM["continual"] | {"learner": learner}
        tables = SMALL | own | {"fusion": {"strategy": name} | fusion}
        yield f"strategy-{name}", {key: value for key, value in tables.items() if value is not None}


def of_learners() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tables of a small stream of every learner."""
    for name in sorted(LEARNERS.builtin):
        fusion = {"strategy": "fedweit" if name == "fedweit" else "knfu"}
        continual = STREAM["continual"] | {"learner": name, "rounds_per_task": 2}
        tables = SMALL | {
            "fusion": fusion,
            "continual": continual,
            "rounds": None,
            "training": SMALL["training"] | {"local_epochs": 2},
        }
        yield f"learner-{name}", {key: value for key, value in tables.items() if value is not None}


def of_scenarios() -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Yield a shortened run of every shipped scenario."""
    import test_scenarios as shipped

    for path in shipped.PATHS:
        name = str(path.relative_to(shipped.FOLDER).with_suffix("")).replace("/", "-")

        def run(out: Path, path: Path = path) -> Any:
            from fedkd.cli.main import main

            overrides = shipped.short_overrides(path)
            words = [
                "run",
                str(path),
                "--out",
                str(out),
                "--engine",
                "inline",
                "--quiet",
                "--set",
                *overrides,
            ]
            if main(words):
                raise RuntimeError(f"{path} failed")

        yield f"scenario-{name}", run


def runs() -> dict[str, Callable[[Path], Any]]:
    """Return all runs by name: each writes a run folder."""
    from fedkd.plan.load import parse_scenario

    found: dict[str, Callable[[Path], Any]] = {}
    for name, tables in [*of_strategies(), *of_learners()]:
        found[name] = partial(fedkd.run, parse_scenario(tables))
    return found | dict(of_scenarios())


def renamed(text: str, names: Mapping[str, str]) -> str:
    """Return metrics with some names changed, and lines in an order that does not depend on names."""
    for old, new in names.items():
        text = re.sub(rf'("metric": ?"){old}', rf"\1{new}", text)
    return "\n".join(sorted(text.splitlines())) if names else text


def main() -> int:
    """Record or compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--match", nargs="*", default=[])
    arguments = parser.parse_args()
    patch("matplotlib.figure.Figure.savefig").start()  # figures take longer than the runs
    differing, number, began = [], 0, time.monotonic()
    for name, run in runs().items():
        if arguments.match and not any(word in name for word in arguments.match):
            continue
        kept = arguments.folder / f"{name}.jsonl"
        if not kept.exists():
            kept = arguments.folder / f"{OLD_RUNS.get(name, name)}.jsonl"
        number += 1
        with tempfile.TemporaryDirectory() as folder:
            out, told = Path(folder) / "run", io.StringIO()
            try:
                with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
                    run(out=out)
                text = (out / "metrics.jsonl").read_text(encoding="utf-8")
            except Exception as error:  # a run that fails differs
                text = f"failed: {type(error).__name__}: {error}: {told.getvalue()[-300:]}\n"
        if arguments.what == "record":
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(text, encoding="utf-8")
            if text.startswith("failed"):
                print(f"{name}: {text}", end="")
        elif not kept.exists():
            print(f"new      {name}")
        elif renamed(kept.read_text(encoding="utf-8"), RENAMED) != renamed(text, RENAMED):
            differing.append(name)
            print(f"DIFFERS  {name}" + (f": {text}" if text.startswith("failed") else ""), flush=True)
    print(f"{number} runs in {time.monotonic() - began:.0f} s, {len(differing)} differ")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
