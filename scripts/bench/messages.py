"""What a message costs when the client does nothing: on fedkd, on a bare Ray actor, and on Flower's backend.

    python scripts/bench/messages.py [--clients 10] [--rounds 60] [--actors 2]

Every round sends one model to every client and gets one back from each, as federated averaging does. The
client returns what it received. The cost is the wall-clock time of a round over its number of messages; the
first rounds warm up and are not counted. Large messages want more rounds than small ones: until the store of
objects has written to all of its memory once, the system finds and clears pages meanwhile. fedkd's Ray has
the settings of one that a run starts, the bare actor's has Ray's own. Each engine is measured in a process of
its own, one after the other, so that neither runs while the other is alive.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedkd.federation.apps.context import LocalContext
from fedkd.federation.messages.arrays import arrays_to_record, values_of

SIZES = {"0.25 MB": 62_500, "45 MB": 11_250_000}
WARM_UP = 3
ENGINES = {"bare": "bare Ray actor", "fedkd": "fedkd on Ray", "flower": "Flower's Ray backend"}

echo = ClientApp()


@echo.train()
def send_back(message: Message, context: Context) -> Message:
    """Return the weights untouched."""
    arrays = message.content.array_records["arrays"]
    return Message(
        RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message
    )


class EchoWorkload:
    """What an actor of fedkd's engine runs."""

    def app(self, message: Message, context: Context) -> Message:
        """Handle a message."""
        return echo(message, context)

    def context(self, client: int) -> Context:
        """Return a context without a client behind it."""
        return LocalContext(client, 1, lambda: None)  # type: ignore[arg-type, return-value]


def measure(grid: Grid, record: ArrayRecord, rounds: int) -> list[float]:
    """Return the seconds per message of every counted round."""
    nodes = sorted(grid.get_node_ids())
    costs = []
    for round in range(WARM_UP + rounds):
        content = RecordDict({"arrays": record, "config": ConfigRecord({"server-round": round})})
        started = time.perf_counter()
        replies = list(grid.send_and_receive([Message(content, node, "train") for node in nodes]))
        total = sum(float(values_of(reply.content.array_records["arrays"]["w"])[0]) for reply in replies)
        seconds = time.perf_counter() - started
        assert total == len(nodes), "a reply is not what was sent"
        if round >= WARM_UP:
            costs.append(seconds / len(nodes))
    return costs


def _start_ray(ray: Any, actors: int, config: Mapping[str, Any] | None = None) -> None:
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=actors, _system_config=config, **options)


def measure_fedkd(weights: np.ndarray, clients: int, actors: int, rounds: int) -> list[float]:
    """Measure fedkd's Ray engine."""
    import ray

    from fedkd.engine.ray.cluster import LOCAL_CONFIG
    from fedkd.engine.ray.grid import RayGrid

    _start_ray(ray, actors, LOCAL_CONFIG)
    grid = RayGrid(EchoWorkload, (), [1.0] * clients, actors=actors)
    grid.wait_until_ready()
    return measure(grid, arrays_to_record({"w": weights}), rounds)


class Bare:
    """An actor that knows nothing but arrays."""

    def echo(self, weights: np.ndarray) -> np.ndarray:
        """Return the weights as they came."""
        return weights


def measure_bare(weights: np.ndarray, clients: int, actors: int, rounds: int) -> list[float]:
    """Measure calls of Ray actors, which get weights from the object store and return some each."""
    import ray

    _start_ray(ray, actors)
    pool = [ray.remote(Bare).remote() for _ in range(actors)]
    costs = []
    for round in range(WARM_UP + rounds):
        started = time.perf_counter()
        stored = ray.put(weights)
        calls = [pool[client % actors].echo.remote(stored) for client in range(clients)]
        total = sum(float(ray.get(call)[0]) for call in calls)
        seconds = time.perf_counter() - started
        assert total == clients, "a reply is not what was sent"
        if round >= WARM_UP:
            costs.append(seconds / clients)
    return costs


def measure_flower(weights: np.ndarray, clients: int, actors: int, rounds: int) -> list[float]:
    """Measure the Ray backend of Flower's simulation."""
    from flwr.simulation import run_simulation

    costs: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < clients:
            time.sleep(0.1)
        costs.extend(measure(grid, ArrayRecord({"w": Array(weights)}), rounds))

    warnings.simplefilter("ignore")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    run_simulation(
        server_app=server,
        client_app=echo,
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": actors, "log_to_driver": False, "include_dashboard": False},
        },
    )
    return costs


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        engine, size = args.one
        weights = np.ones(SIZES[size], dtype=np.float32)
        measured = {"fedkd": measure_fedkd, "bare": measure_bare, "flower": measure_flower}[engine]
        print(json.dumps(measured(weights, args.clients, args.actors, args.rounds)))
        return

    setting = f"{args.clients} clients, {args.actors} actors, {args.rounds} rounds"
    print(f"{setting}; ms a message, median (min–max)\n")
    print(f"| message | {' | '.join(ENGINES[name] for name in args.engines)} |")
    print(f"|---|{'---|' * len(args.engines)}")
    for size in SIZES:
        cells = []
        for engine in args.engines:
            command = [sys.executable, __file__, "--one", engine, size]
            for name in ("clients", "rounds", "actors"):
                command += [f"--{name}", str(getattr(args, name))]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            costs = [1e3 * seconds for seconds in json.loads(output.splitlines()[-1])]
            cells.append(f"{statistics.median(costs):.1f} ({min(costs):.1f}–{max(costs):.1f})")
        print(f"| {size} each way | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
