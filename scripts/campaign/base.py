"""What every case starts from: small scenarios on a small data set, so that a run is over in a moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from campaign.sandbox import Command, Place

DATA = "small.npz"
SHAPE = (1, 4, 4)
CLASSES = 4


@dataclass
class Bench:
    """What cases are made with, and what is made once for all cases of a process.

    Attributes:
        command: fedkd, or what stands in for it.
        folder: Where cases and what they share live.
        shared: What was made once, by name.
    """

    command: Command
    folder: Path
    shared: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` made when this name was asked for first."""
        if name not in self.shared:
            self.shared[name] = make()
        return self.shared[name]


def tables(**changes: Any) -> dict[str, Any]:
    """Return a scenario of three clients with two architectures and two rounds, with some tables replaced."""
    return {
        "name": "small",
        "seed": 3,
        "rounds": 2,
        "data": {
            "dataset": "npz",
            "args": {"path": DATA},
            "clients": 3,
            "partition": {
                "scheme": "dirichlet",
                "alpha": 1.0,
                "samples_per_client": 24,
                "min_samples": 2,
            },
            "transfer": {"source": "holdout", "size": 12},
            "test_size": 20,
        },
        "clients": [{"model": "mlp", "args": {"hidden": [4]}}, {"model": "mlp", "args": {"hidden": [5, 3]}}],
        "training": {"lr": 0.01, "batch_size": 12},
        "fusion": {"strategy": "knfu"},
        "engine": {"kind": "inline"},
        **changes,
    }


def stream_tables(learner: str = "naive") -> dict[str, Any]:
    """Return a scenario over a stream of two tasks."""
    small = tables(continual={"learner": learner, "tasks": {"kind": "split", "count": 2}})
    small["clients"] = small["clients"][:1]
    small["data"]["transfer"]["size"] = 6
    small["data"]["partition"]["samples_per_client"] = 14
    del small["rounds"]
    return small


def arrays() -> dict[str, np.ndarray]:
    """Return the arrays of the small data set: 160 train and 40 test images of four classes."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % CLASSES
    x = rng.normal(size=(200, *SHAPE)).astype(np.float32) + y[:, None, None, None]
    return {"train_x": x[:160], "train_y": y[:160], "test_x": x[160:], "test_y": y[160:]}


def write_scenario(place: Place, scenario: Mapping[str, Any], name: str = "scenario.toml") -> Path:
    """Write a scenario and its data into a case's inputs; return the scenario's path."""
    write_data(place)
    path = place.inputs / name
    path.write_text(tomli_w.dumps(dict(scenario)), encoding="utf-8")
    return path


def write_data(place: Place) -> None:
    """Write the small data set into a case's inputs."""
    if not (place.inputs / DATA).exists():
        np.savez(place.inputs / DATA, **arrays())  # type: ignore[arg-type]
