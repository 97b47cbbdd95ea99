"""Which strategy works with which learner over which clock: every combination, run or refused.

    python scripts/combinations.py [--check] [--engine ray|inline]

Each is a short run of three clients with orders of their own, two tasks of the digits. What ``fedkd check``
does not refuse has to run to its end and learn; with ``--check`` nothing is run. Prints the table of
docs/federated-continual.md; the exit status is 1 if a combination failed that was not refused.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fedkd
from fedkd.errors import FedkdError, UserError
from fedkd.plan.load import parse_plan
from fedkd.simulation.scenario_check import check_plan

STRATEGIES = ("local", "fedmd", "knfu", "max_confidence", "feddf", "flwr:FedAvg")
LEARNERS = ("naive", "ewc", "er", "exssnet", "supsup", "gpm", "cuber")
CLOCKS = ("lockstep", "poisson")
AVERAGED = ("flwr:FedAvg",)
"""Strategies that want one architecture."""
SETTINGS: dict[str, dict[str, Any]] = {"ewc": {"strength": 10.0}}
"""Where plain SGD at a rate of 0.1 would diverge under the defaults, made for Adam's smaller steps."""
WORKS, FAILED = "✓", "failed"
BETTER_THAN = 0.55
"""Accuracy on two classes, over all tasks met: guessing has a half."""
MODELS = [{"model": "mlp", "args": {"hidden": [32]}}, {"model": "mlp", "args": {"hidden": [24]}}]


def tables(strategy: str, learner: str, clock: str) -> dict[str, Any]:
    """Return the scenario of a combination."""
    return {
        "name": f"{strategy}-{learner}-{clock}".replace(":", "-").lower(),
        "seed": 1,
        "evaluate_every": 2,
        "data": {
            "dataset": "digits",
            "clients": 3,
            "partition": {"scheme": "dirichlet", "alpha": 1.0, "samples_per_client": 60},
            "transfer": {"source": "holdout", "size": 20},
            "test_size": 60,
        },
        "clients": MODELS[:1] if strategy in AVERAGED else MODELS,
        "training": {"optimizer": "sgd", "lr": 0.1, "batch_size": 10, "local_epochs": 3},
        "fusion": {"strategy": strategy},
        "continual": {
            "learner": learner,
            **SETTINGS.get(learner, {}),
            "rounds_per_task": 2,
            "tasks": {
                "kind": "split",
                "count": 2,
                "classes_per_task": 2,
                "order": "shuffled",
                "pace": clock,
            },
        },
    }


def refusal(scenario: Mapping[str, Any]) -> str:
    """Return why ``fedkd check`` refuses a scenario; empty if it does not."""
    try:
        for _ in check_plan(parse_plan(scenario)):
            continue
    except UserError as error:
        return error.message
    return ""


def table(cells: Mapping[tuple[str, str, str], str]) -> Iterator[str]:
    """Yield the lines of a Markdown table: a row a strategy, a column a learner; then the reasons."""
    reasons = sorted({text for text in cells.values() if text != WORKS})
    yield "| | " + " | ".join(f"`{learner}`" for learner in LEARNERS) + " |"
    yield "| --- |" + " :-: |" * len(LEARNERS)
    for strategy in STRATEGIES:
        row = []
        for learner in LEARNERS:
            texts = [cells[strategy, learner, clock] for clock in CLOCKS]
            marks = [text if text == WORKS else f"[{reasons.index(text) + 1}]" for text in texts]
            row.append(marks[0] if len(set(marks)) == 1 else " / ".join(marks))
        yield f"| `{strategy}` | " + " | ".join(row) + " |"
    yield ""
    for number, reason in enumerate(reasons, start=1):
        yield f"- [{number}] {reason}"


def outcome(cell: tuple[str, str, str], engine: Mapping[str, Any], folder: Path, only_check: bool) -> str:
    """Return what becomes of a combination: `WORKS`, why it is refused, or how it failed."""
    strategy, learner, _ = cell
    scenario = tables(*cell) | {"engine": dict(engine)}
    reason = refusal(scenario)
    if reason or only_check:
        return reason.replace(f"'{strategy}'", "the strategy").replace(f"'{learner}'", "the learner") or WORKS
    try:
        run = fedkd.run(scenario, out=folder / str(scenario["name"]), progress=False)
    except FedkdError as error:
        return f"{FAILED}: {error.message}"
    learned = run.summary["continual"]["average_incremental_accuracy"]["mean"]
    return WORKS if learned > BETTER_THAN else f"{FAILED}: the tasks met are known to {learned:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all combinations; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="ask only which are refused")
    parser.add_argument("--engine", choices=("ray", "inline"), default="ray")
    words = parser.parse_args(arguments)
    engine: dict[str, Any] = {"kind": words.engine}
    if words.engine == "ray" and not words.check:
        import ray

        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        engine |= {"actors": 2, "address": ray.get_runtime_context().gcs_address}
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        for cell in product(STRATEGIES, LEARNERS, CLOCKS):
            cells[cell] = outcome(cell, engine, Path(folder), words.check)
            print(" × ".join(cell), cells[cell], file=sys.stderr, flush=True)
    print("\n".join(table(cells)))
    return int(any(text.startswith(FAILED) for text in cells.values()))


if __name__ == "__main__":
    sys.exit(main())
