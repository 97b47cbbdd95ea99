"""Short runs whose metrics lie in ``metrics/``, and how a run of today is compared with them.

A refactoring keeps every one of these figures; a change of behaviour changes some, and then they are written
anew on purpose (``python tests/golden/rewrite.py``) and seen in review.

Arithmetic differs in its last bits between processors and builds of torch. Losses and other real numbers
are therefore compared to a thousandth, accuracies to about a sample of a client's test set. Runs are chosen
so that last bits stay last bits: with max-pooling over a stream, forests that are fitted to soft labels, or
thin masks of wide networks, they grow to whole samples within a few rounds.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fedkd
from fedkd.continual.registry import LEARNERS
from fedkd.fusion.registry import STRATEGIES
from fedkd.plan.load import parse_scenario

FOLDER = Path(__file__).resolve().parent / "metrics"

# Scenarios --------------------------------------------------------------------------------------------

MLP = {"model": "mlp", "args": {"hidden": [16]}}
WIDER = {"model": "mlp", "args": {"hidden": [32, 16]}}
RESNET = {"model": "resnet8"}
BASE: dict[str, Any] = {
    "name": "golden",
    "seed": 7,
    "rounds": 3,
    "data": {
        "dataset": "digits",
        "clients": 4,
        "partition": {"scheme": "dirichlet", "alpha": 1.0, "samples_per_client": 60},
        "transfer": {"source": "holdout", "size": 60},
        "test_size": 80,
    },
    "clients": [MLP, {"model": "lenet"}],
    "training": {"lr": 0.01, "batch_size": 20},
    "engine": {"kind": "inline"},
}
SHORT_STREAM = {
    "rounds": None,  # as many as the tasks take
    "data": BASE["data"] | {"clients": 3, "transfer": {"size": 20}},
    "clients": [MLP, WIDER],
    "fusion": {"strategy": "knfu"},
}


def stream(learner: str, kind: str, **hyperparameters: Any) -> dict[str, Any]:
    """Return the table of a stream of three tasks, two rounds each."""
    tasks = {"kind": kind, "count": 3} | ({"classes_per_task": 3} if kind == "split" else {})
    return {"learner": learner, "rounds_per_task": 2, "tasks": tasks, **hyperparameters}


RUNS: dict[str, dict[str, Any]] = {
    "knfu": {"fusion": {"strategy": "knfu", "ce_weight": 0.5, "distribution_momentum": 0.5}},
    "fedmd": {
        "fusion": {"strategy": "fedmd", "distill_epochs": 2},
        "heterogeneity": {"rotation": 20.0, "noise": 0.2, "label_noise": 0.1},
    },
    "centralized": {
        "fusion": {"strategy": "centralized"},
        "rounds": 4,
        "clients_per_round": 2,
        "evaluate_every": 2,
    },
    "fd": {"fusion": {"strategy": "fd"}, "training": BASE["training"] | {"schedule": "cosine"}},
    "fedproto": {
        "fusion": {"strategy": "fedproto"},
        "clients": [MLP, {"model": "mlp", "args": WIDER["args"] | {"dropout": 0.2}}],
    },
    "scarlet-partial": {
        "fusion": {"strategy": "scarlet", "samples_per_round": 20},
        "rounds": 4,
        "clients_per_round": 2,
        "evaluate_every": 2,
    },
    "feddf": {"fusion": {"strategy": "feddf", "server_epochs": 2}},
    "scaffold": {
        "fusion": {"strategy": "scaffold"},
        "clients": [RESNET],
        "training": {"optimizer": "sgd", "lr": 0.05, "batch_size": 20},
    },
    "fedrep": {"fusion": {"strategy": "fedrep", "head_epochs": 2}, "clients": [MLP]},
    "fedala-partial": {"fusion": {"strategy": "fedala"}, "clients": [WIDER], "clients_per_round": 3},
    "moon": {
        "fusion": {"strategy": "moon", "mu": 1.0},
        "clients": [{"model": "mlp", "args": {"hidden": [16], "projection": 8}}],
    },
    "fedavg-partial": {"fusion": {"strategy": "flwr:FedAvg"}, "clients": [MLP], "clients_per_round": 2},
    "fedadam": {"fusion": {"strategy": "flwr:FedAdam", "eta": 0.01}, "clients": [WIDER]},
    "estimators": {
        "fusion": {"strategy": "cfd"},
        "clients": [{"model": "random-forest", "args": {"trees": 5}}, {"model": "sgd"}, MLP],
    },
    "faults": {
        "fusion": {"strategy": "knfu", "stale_decay": 0.5},
        "rounds": 4,
        "faults": {"poisoned": 0.25, "poison": "imitation", "dropout": 0.3, "stragglers": 0.4},
    },
    "float16": {"fusion": {"strategy": "cronus", "upload_dtype": "float16"}},
    "stream-naive": SHORT_STREAM | {"continual": stream("naive", "split", evaluate_epochs=True)},
    "stream-er": SHORT_STREAM | {"continual": stream("er", "rotated"), "clients_per_round": 2},
    "stream-ewc": SHORT_STREAM | {"continual": stream("ewc", "permuted")},
    "stream-gpm": SHORT_STREAM | {"continual": stream("gpm", "split", head="class")},
    "stream-exssnet": SHORT_STREAM | {"continual": stream("exssnet", "split", kkt=True), "clients": [MLP]},
}
"""What each run changes in `BASE`, table by table."""


# One short run of every strategy and learner ----------------------------------------------------------

SMALL: dict[str, Any] = {
    "name": "golden-method",
    "seed": 7,
    "rounds": 2,
    "data": BASE["data"]
    | {
        "clients": 3,
        "partition": {"scheme": "dirichlet", "alpha": 1.0, "samples_per_client": 40},
        "transfer": {"source": "holdout", "size": 40},
        "test_size": 60,
    },
    "clients": [MLP],
    # Plain SGD: Adam's first steps are as large as the sign of a gradient, which last bits may turn.
    "training": {"optimizer": "sgd", "lr": 0.1, "batch_size": 20},
    "engine": {"kind": "inline"},
}
SERVER = {"server_model": "mlp", "server_args": {"hidden": [16]}, "server_epochs": 2}
SHARED = {"shared_args": {"hidden": [8]}}
OWN: dict[str, dict[str, Any]] = {
    "cfd": SERVER,
    "feddf": {"server_epochs": 2},
    "fedet": SERVER,
    "fedgen": {"server_steps": 5},
    "fedgkt": {"server_epochs": 2, "server_hidden": [16]},
    "fedhkt": SERVER | {"clusters": 2},
    "fedkd_wu": SHARED,
    "fedmrl": SHARED,
    "fml": SHARED,
    "mhat": SERVER,
    "target": {"samples": 20, "synthesis_batch_size": 20, "generator_steps": 2},
}
"""What a strategy wants besides its name, and what makes it cheap."""
ADAPTERS = ("fedit", "ffa_lora", "flexlora", "flora", "hetlora")
STREAMS = {"fedmask": ("supsup", {}), "fedweit": ("fedweit", {}), "target": ("naive", {"head": "class"})}
"""Learner and keys of the stream that a strategy needs."""


def short_stream(learner: str, **keys: Any) -> dict[str, Any]:
    """Return the table of a stream of two tasks, a round each."""
    tasks = {"kind": "split", "count": 2, "classes_per_task": 3}
    return {"learner": learner, "rounds_per_task": 1, "tasks": tasks, **keys}


def of_strategy(name: str) -> dict[str, Any]:
    """Return the scenario of a strategy's run."""
    tables = SMALL | {"fusion": {"strategy": name} | OWN.get(name, {})}
    if name in STREAMS:
        learner, keys = STREAMS[name]
        tables = tables | {"rounds": None, "continual": short_stream(learner, **keys)}
    if name == "gossip":
        tables = tables | {"topology": {"graph": "ring"}}
    if name in ADAPTERS:
        tables = tables | {"clients": [MLP | {"adapter": {"rank": 2}}]}
    if name == "moon":
        tables = tables | {"clients": [{"model": "mlp", "args": {"hidden": [16], "projection": 8}}]}
    return tables


def of_learner(name: str) -> dict[str, Any]:
    """Return the scenario of a learner's run."""
    fusion = {"strategy": "fedweit" if name == "fedweit" else "knfu"}
    stream = short_stream(name) | {"rounds_per_task": 2}
    training = SMALL["training"] | {"local_epochs": 2}
    return SMALL | {"rounds": None, "fusion": fusion, "continual": stream, "training": training}


METHODS = {f"strategy {name}": of_strategy(name) for name in sorted(STRATEGIES.builtin)} | {
    f"learner {name}": of_learner(name) for name in sorted(LEARNERS.builtin)
}
"""The scenario of each method's run."""
OF_METHODS = Path(__file__).resolve().parent / "methods.json"


def method_figures(name: str) -> dict[str, Any]:
    """Run a method; return the federation's mean losses, round after round, and the bytes that travelled."""
    tables = {key: value for key, value in METHODS[name].items() if value is not None}
    losses: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        result = fedkd.run(parse_scenario(tables), out=Path(folder) / "run", report=False)
        rows, final = result.metrics(), result.summary["final"]
    for row in rows:
        if row["metric"] == "loss" and row["client"] is None and row["task"] is None:
            losses[f"{row['split']} loss"].append(rounded(row["value"]))
    return {**losses, "bytes": [final["bytes_up"], final["bytes_down"]]}


def kept_methods() -> dict[str, dict[str, Any]]:
    """Return the figures of all methods that lie in the repository."""
    return json.loads(OF_METHODS.read_text(encoding="utf-8")) if OF_METHODS.exists() else {}


# Figures ----------------------------------------------------------------------------------------------

Figures = dict[str, dict[str, float | None]]
"""Of a series, as ``"global accuracy, task 1"``: means (``"round 2"``), last values (``"client 3"``)."""


def run_figures(name: str) -> Figures:
    """Run a scenario and return its figures."""
    tables = {key: value for key, value in (BASE | RUNS[name]).items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        result = fedkd.run(parse_scenario(tables), out=Path(folder) / "run", report=False)
        rows, summary = result.metrics(), result.summary
    figures: Figures = defaultdict(dict)
    for row in rows:
        series = f"{row['split']} {row['metric']}"
        series += f", task {row['task']}" if row["task"] is not None else ""
        place = f"round {row['round']}" if row["client"] is None else f"client {row['client']}"
        figures[series][place] = rounded(row["value"])
    for key in ("bytes_up", "bytes_down"):
        figures["summary"][key] = summary["final"][key]
    for key, value in (summary["continual"] or {}).items():
        if isinstance(value, Mapping) and "mean" in value:
            figures["summary of the stream"][key] = rounded(value["mean"])
    return {series: in_order(values) for series, values in sorted(figures.items())}


def in_order(values: dict[str, float | None]) -> dict[str, float | None]:
    """Return rounds before clients, each in their order."""

    def key(place: str) -> tuple[int, int]:
        word, _, number = place.partition(" ")
        return ("round", "client").index(word), int(number)

    named = all(" " in place for place in values)
    return {place: values[place] for place in (sorted(values, key=key) if named else sorted(values))}


def rounded(value: float | None) -> float | None:
    """Return five significant digits."""
    return None if value is None else float(f"{value:.5g}")


def kept_figures(name: str) -> Figures:
    """Return the figures that lie in the repository; none where the run is new."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def dump(figures: Figures) -> str:
    """Return the figures as JSON with one series a line, for the sake of differences in review."""
    lines = [f"  {json.dumps(series)}: {json.dumps(values)}" for series, values in figures.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


# Comparison -------------------------------------------------------------------------------------------

SHARES = re.compile(r"accuracy|gain|flips|agreement|forgetting|\b[bfn][bw]t|auc|area|kkt|inference")
"""Metrics that are shares of a few test samples, or differences of such shares."""


def tolerance(series: str, place: str, kept: float) -> float:
    """Return how far a figure may be from the one that is kept: see the top of this file."""
    if series == "summary":
        return 0.0  # bytes
    if "epochs_to" in place:
        return 0.12  # of nine curves, one takes an epoch more
    if SHARES.search(f"{series} {place}"):
        return 0.09 if place.startswith("client") else 0.03  # local test sets have 12 samples
    return 1e-3 * abs(kept) + 1e-6


def agrees(series: str, place: str, kept: float | None, got: float | None) -> bool:
    """Return whether a figure is the one that is kept."""
    if kept is None or got is None:
        return kept is got
    return abs(got - kept) <= tolerance(series, place, kept)


def differences(kept: Figures, got: Figures) -> list[str]:
    """Return a line for every series that is new or missing, and for every figure that has changed."""
    lines = []
    for series in sorted(kept.keys() | got.keys()):
        old, new = kept.get(series, {}), got.get(series, {})
        for word, places in (("new", new.keys() - old.keys()), ("missing", old.keys() - new.keys())):
            if places:
                lines.append(f"{word:8} {series}: {', '.join(in_order(dict.fromkeys(places)))}")
        lines += [
            f"changed  {series}, {place}: {old[place]} -> {new[place]}"
            for place in in_order(dict.fromkeys(old.keys() & new.keys()))
            if not agrees(series, place, old[place], new[place])
        ]
    return lines


def renewed(kept: Figures, got: Figures) -> Figures:
    """Return today's figures; those that still agree stay as they are kept, last digits and all."""
    return {
        series: {
            place: kept[series][place]
            if place in kept.get(series, {}) and agrees(series, place, kept[series][place], value)
            else value
            for place, value in values.items()
        }
        for series, values in got.items()
    }
