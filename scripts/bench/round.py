"""What a round of federated averaging costs: a hand-written floor, fedkd, Flower, and other simulators.

    python scripts/bench/round.py [--rounds 6] [--repeats 5] [--drivers floor fedkd flower]
                                  [--peers-python PATH --drivers floor fedkd flower pfl fluke fluke-1]
                                  [--blazefl-python PATH --drivers floor fedkd blazefl]

Fashion-MNIST, 20 clients, Dirichlet 0.5, LeNet, plain SGD at 0.05, batches of 32, one epoch, all clients in
every round; after each the global model is evaluated on the test images. All drivers have the same shards,
two processes with one thread each, and take turns, each in a process of its own. Printed are medians of the
steady seconds a round (the first one apart), what they are beside the floor's of the same turn, and the whole
command's seconds. Other simulators are not installed with fedkd: ``--peers-python`` names the
interpreter of an environment that has them (pfl 0.6.0 and fluke-fl 0.8.1 go together) and the same torch;
BlazeFL 2.0.1 needs Python 3.12, so ``--blazefl-python`` names another.
Run it on a machine that does nothing else: threads that share products all but stand still on a busy one.

fluke trains clients in one process whatever there is: ``fluke`` has as many threads in it as the others
have processes, ``fluke-1`` has one. With ``--processes 1`` everybody has one process with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedkd.data.registry import load_dataset
from fedkd.data.request import SourceRequest, data_root_folder
from fedkd.errors import told_in_one_line

PEERS = Path(__file__).resolve().parent / "peers"
REPOSITORY = PEERS.parents[2]
DRIVERS = {
    "floor": "floor.py",
    "fedkd": "ours.py",
    "flower": "flower.py",
    "pfl": "pfl_driver.py",
    "fluke": "fluke_driver.py",
    "fluke-1": "fluke_driver.py",
    "blazefl": "blazefl_driver.py",
}
STRANGERS = {
    "pfl": "peers_python",
    "fluke": "peers_python",
    "fluke-1": "peers_python",
    "blazefl": "blazefl_python",
}
"""Drivers of what is not installed with fedkd, and the word that names their interpreter."""
ONE_THREAD = ("fluke-1",)
"""Drivers that have one process with one thread, however many the others have."""
CLIENTS, ALPHA, SEED, LEAST = 20, 0.5, 1, 64


@dataclass(frozen=True)
class Took:
    """What one run of a driver took.

    Attributes:
        first: Seconds from when the driver has imported what it needs to the end of the first round.
        steady: Median seconds of the rounds after it.
        whole: Seconds of the whole command.
        accuracy: Of the last global model.
    """

    first: float
    steady: float
    whole: float
    accuracy: float


def prepare(folder: Path, samples: int | None) -> None:
    """Write the data of all drivers: images of each client one after the other."""
    images = load_dataset(SourceRequest("fashion-mnist", data_root_folder(None)))
    x, y = images.train_x[:samples, 0], images.train_y[:samples]
    test_x, test_y = images.test_x[:samples, 0], images.test_y[:samples]
    clients = deal(y)
    order, starts = np.concatenate(clients), np.cumsum([0, *map(len, clients)])
    x, y = x[order], y[order]
    np.savez(folder / "data.npz", x=x, y=y, starts=starts, test_x=test_x, test_y=test_y)
    split = {"train_x": x[:, None], "train_y": y, "test_x": test_x[:, None], "test_y": test_y}
    np.savez(folder / "fedkd.npz", **split)
    own = [list(range(starts[client], starts[client + 1])) for client in range(CLIENTS)]
    (folder / "clients.json").write_text(json.dumps([list(map(int, indices)) for indices in own]))


def deal(labels: np.ndarray) -> list[np.ndarray]:
    """Deal samples by a Dirichlet draw for each class, again and again until nobody has too few."""
    draws, least = np.random.default_rng(SEED), min(LEAST, len(labels) // (4 * CLIENTS))
    while True:
        parts: list[list[np.ndarray]] = [[] for _ in range(CLIENTS)]
        for label in np.unique(labels):
            found = draws.permutation(np.flatnonzero(labels == label))
            shares = np.cumsum(draws.dirichlet(np.full(CLIENTS, ALPHA)))[:-1]
            for part, own in zip(parts, np.split(found, (shares * len(found)).astype(int)), strict=True):
                part.append(own)
        clients = [draws.permutation(np.concatenate(part)) for part in parts]
        if min(map(len, clients)) >= least:
            return clients


def drive(driver: str, python: str, folder: Path, rounds: int, processes: int) -> Took:
    """Run a driver once."""
    lanes = 1 if driver in ONE_THREAD else processes
    command = [python, str(PEERS / DRIVERS[driver]), str(folder), str(rounds), str(lanes)]
    if driver == "pfl":
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")] if python == sys.executable else []
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    begun = time.perf_counter()
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    whole = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{driver}: exit status {done.returncode}\n{done.stderr[-3000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    moments = told["moments"]
    steady = statistics.median(np.diff(moments))
    return Took(moments[0], float(steady), whole, told["accuracies"][-1])


def row(driver: str, runs: Sequence[Took], floor: Sequence[Took]) -> str:
    """Return a driver's row of the table."""
    steady = [run.steady for run in runs]
    ratios = [run.steady / other.steady for run, other in zip(runs, floor, strict=True)]
    cells = [
        driver,
        f"{statistics.median(steady):.2f} ({min(steady):.2f}–{max(steady):.2f})",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
        f"{statistics.median(run.first for run in runs):.1f}",
        f"{statistics.median(run.whole for run in runs):.1f}",
        f"{100 * statistics.median(run.accuracy for run in runs):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    """Return what it was measured on."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores"


def main() -> None:
    """Measure and print a Markdown table."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--drivers", nargs="+", choices=list(DRIVERS), default=["floor", "fedkd", "flower"])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--samples", type=int, help="of the training images; absent: all")
    parser.add_argument("--peers-python", help="interpreter of an environment with pfl and fluke")
    parser.add_argument("--blazefl-python", help="interpreter of an environment with BlazeFL")
    args = parser.parse_args()
    if args.rounds < 2 or args.drivers[0] != "floor":
        parser.error("there have to be 2 rounds, and the floor before all others")
    pythons = {name: getattr(args, STRANGERS[name]) for name in args.drivers if name in STRANGERS}
    for word in dict.fromkeys(STRANGERS.values()):
        if missing := [name for name, python in pythons.items() if STRANGERS[name] == word and not python]:
            option = "--" + word.replace("_", "-")
            parser.error(f"{', '.join(missing)}: say where it is installed, by {option}")
    runs: dict[str, list[Took]] = {name: [] for name in args.drivers}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), args.samples)
        for _ in range(args.repeats):
            for name in args.drivers:
                python = pythons.get(name, sys.executable)
                runs[name].append(drive(name, python, Path(folder), args.rounds, args.processes))
                print(f"{name}: {runs[name][-1].steady:.2f} s a round", file=sys.stderr, flush=True)
    print(f"{machine()}; {args.processes} processes; medians of {args.repeats} runs, and their ranges\n")
    print("| | s / round | beside the floor | first round after, s | whole command, s | accuracy, % |")
    print("| --- | --: | --: | --: | --: | --: |")
    for name in args.drivers:
        print(row(name, runs[name], runs["floor"]))


if __name__ == "__main__":
    with told_in_one_line():
        main()
