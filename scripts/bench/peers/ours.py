"""fedkd: the same federation as a scenario on Ray actors."""

from __future__ import annotations

import tempfile
from pathlib import Path

from common import BATCH, LR, SEED, Rounds, load_images, run_driver

import fedkd
from fedkd.tracking.events import RoundReport, RunObserver


class Watch(RunObserver):
    """Takes down when rounds are over."""

    def __init__(self, took: Rounds) -> None:
        self._took = took

    def round_finished(self, report: RoundReport) -> None:
        """Take one down."""
        self._took.done(report.accuracy_global or 0.0)


def drive(folder: Path, rounds: int, processes: int, took: Rounds) -> None:
    """Run the scenario."""
    scenario = {
        "name": "round",
        "seed": SEED,
        "rounds": rounds,
        "checkpoint_every": rounds,
        "evaluate_clients": 1,  # all have the global model, which is what is evaluated
        "data": {
            "dataset": "npz",
            "args": {"path": str(folder / "fedkd.npz")},
            "clients": load_images(folder).clients,
            "partition": {"scheme": "file", "path": str(folder / "clients.json"), "min_samples": 1},
            "transfer": {"size": 0},
            "test_fraction": 0.0,
        },
        "clients": [{"model": "lenet"}],
        "training": {"optimizer": "sgd", "lr": LR, "batch_size": BATCH, "local_epochs": 1},
        "fusion": {"strategy": "flwr:FedAvg"},
        "engine": {"kind": "ray", "actors": processes},
    }
    with tempfile.TemporaryDirectory() as out:
        fedkd.run(scenario, out=Path(out) / "run", observers=[Watch(took)])


if __name__ == "__main__":
    run_driver(drive)
