"""How long a scenario would take with more clients on more actors, from parts that are measured here.

    python scripts/cluster/forecast.py SCENARIO.toml [--clients 1000000] [--per-round 1000] [--rounds 100]
        [--evaluated 1000] [--evaluate-every 10] [--checkpoint-every 10] [--actors 16,64,256,1024]

A few rounds of the scenario, with a few of its clients, say what one client's training, evaluation and state
take of an actor's time; messages of the same size to clients that do nothing say what each takes of the
server's. `fedkd.engine.forecast` does the rest. Measure on a machine that is otherwise idle, with the CPU or
GPU that the actors will have.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
from flwr.app import Context, Message, RecordDict

import fedkd
from fedkd.engine.forecast import Parts, RunSize, forecast
from fedkd.engine.ray_grid import RayGrid
from fedkd.engine.ray_pool import connect
from fedkd.federation.arrays import to_record
from fedkd.federation.context import LocalContext
from fedkd.plan.load import load_scenario
from fedkd.scenario.schema import Engine
from fedkd.tracking.recorder import read_timings
from fedkd.tracking.wording import duration


class Echo:
    """Clients that return what they are sent."""

    def app(self, message: Message, context: Context) -> Message:
        """Handle a message."""
        return Message(message.content, reply_to=message)

    def context(self, client: int) -> Context:
        """Return a context without a client behind it."""
        return LocalContext(client, 1, lambda: None)  # type: ignore[arg-type, return-value]


def seconds_of_a_message(values: int, clients: int = 400, times: int = 5) -> float:
    """Return the seconds that the server's process needs for one message and its reply.

    Args:
        values: Float32 numbers each way.
        clients: Messages that are sent at once.
        times: How often; the first one warms up, and the median of the others counts.
    """
    cluster = connect(Engine())
    try:
        grid = RayGrid(Echo, (), [1.0] * clients, actors=2, cpus_per_actor=0.5, watch=cluster.watch)
        grid.wait_until_ready(600.0)
        try:
            taken = []
            for _ in range(times + 1):
                arrays = {client: to_record({"x": np.zeros(values, np.float32)}) for client in range(clients)}
                messages = [
                    grid.create_message(RecordDict({"arrays": arrays[client]}), "train", node, "1")
                    for client, node in enumerate(grid.get_node_ids())
                ]
                started = time.perf_counter()
                list(grid.send_and_receive(messages))
                taken.append((time.perf_counter() - started) / clients)
            return median(taken[1:])
        finally:
            grid.close()
    finally:
        cluster.close()


def seconds_of_clients(path: Path, clients: int, rounds: int) -> tuple[dict[str, float], float]:
    """Return what one client takes in each phase, and a fusion as a whole; and the bytes that one sends.

    Args:
        path: The scenario.
        clients: How many of its clients there are, all of them trained and evaluated in every round.
        rounds: Rounds; the first one warms up, and the median of the others counts.
    """
    changes = [f"data.clients={clients}", f"rounds={rounds}", "engine.kind=inline", "evaluate_every=1"]
    scenario = load_scenario(path, [*changes, "checkpoint_every=1"])
    scenario = scenario.model_copy(update={"clients_per_round": None, "evaluate_clients": None})
    with tempfile.TemporaryDirectory() as folder:
        rows = read_timings(fedkd.run(scenario, out=Path(folder) / "run").folder)
    found: dict[str, list[float]] = {}
    sent: list[float] = []
    for row in rows:
        if row["round"] > 1:
            each = 1 if row["phase"] == "fuse" else clients
            found.setdefault(row["phase"], []).append(row["seconds"] / each)
            if row["phase"] == "train":
                sent.append(row["bytes_up"] / clients)
    return {phase: median(seconds) for phase, seconds in found.items()}, median(sent)


def measured(path: Path, clients: int = 8, rounds: int = 5, **options: Any) -> Parts:
    """Return the parts of a scenario's rounds as they are on this machine."""
    seconds, sent = seconds_of_clients(path, clients, rounds)
    message = seconds_of_a_message(max(1, round(sent / 4)), **options)
    return Parts(message, seconds["train"], seconds["evaluate"], seconds["save"], seconds["fuse"])


def table(parts: Parts, sizes: Sequence[RunSize]) -> str:
    """Return the parts, and a line for each number of actors."""
    lines = [
        f"a message {1000 * parts.message:.2f} ms, a client's training {1000 * parts.train:.1f} ms,"
        f" its evaluation {1000 * parts.evaluate:.1f} ms, its state {1000 * parts.save:.1f} ms,"
        f" a fusion {1000 * parts.fuse:.1f} ms",
        "",
        f"{'actors':>8}{'training':>12}{'evaluation':>12}{'checkpoint':>12}{'round':>12}{'run':>14}{'busy':>8}",
    ]
    for size in sizes:
        told = forecast(parts, size)
        times = "".join(f"{duration(s):>12}" for s in (told.train, told.evaluate, told.save, told.round))
        lines.append(f"{size.actors:>8}{times}{duration(told.run):>14}{told.busy:>8.0%}")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", type=Path)
    for name, default in (
        ("clients", 1_000_000),
        ("per-round", 1000),
        ("rounds", 100),
        ("evaluated", 1000),
        ("evaluate-every", 10),
        ("checkpoint-every", 10),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--actors", default="16,64,256,1024")
    args = parser.parse_args()
    sizes = [
        RunSize(
            clients=args.clients,
            per_round=args.per_round,
            evaluated=args.evaluated,
            rounds=args.rounds,
            actors=int(actors),
            evaluate_every=args.evaluate_every,
            checkpoint_every=args.checkpoint_every,
        )
        for actors in args.actors.split(",")
    ]
    print(table(measured(args.scenario), sizes))


if __name__ == "__main__":
    main()
