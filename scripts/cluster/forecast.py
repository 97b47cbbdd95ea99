"""How long a scenario would take with more clients on more actors, from parts that are measured here.

    python scripts/cluster/forecast.py SCENARIO.toml [--clients 1000000] [--per-round 1000] [--rounds 100]
        [--evaluated 1000] [--evaluate-every 10] [--checkpoint-every 10] [--actors 16,64,256,1024]

A few rounds of the scenario, with a few of its clients, say what one client's training, evaluation and state
take of an actor's time; messages of the same size to clients that do nothing say what each takes of the
server's. Measure on a machine that is otherwise idle, with the CPU or GPU that the actors will have.

One process, the server's, sends every message and takes every reply, one after the other; the actors work on
them side by side. So a phase of a round takes as long as the slower of the two:

    phase(n, w) = max(n · message, n / actors · w) + w

with n clients and w seconds of an actor's for each. The last term is the last client, whom nobody works
beside. A round is a training, a fusion and, every so often, an evaluation and a checkpoint:

    round = phase(per_round, train) + fuse + phase(evaluated, evaluate) / evaluate_every
            + phase(min(clients, per_round · checkpoint_every), save) / checkpoint_every

and a run

    run = start + clients · message + rounds · round

as every client is asked once, in the beginning, who it is.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
from flwr.app import Context, Message, RecordDict

import fedkd
from fedkd.engine.ray.cluster import connect_ray
from fedkd.engine.ray.grid import RayGrid
from fedkd.federation.apps.context import LocalContext
from fedkd.federation.messages.arrays import arrays_to_record
from fedkd.plan.load import load_scenario
from fedkd.scenario.schema import Engine
from fedkd.tracking.recorder import read_timings
from fedkd.tracking.wording import format_duration


@dataclass(frozen=True)
class Parts:
    """What the parts of a round take, in seconds.

    Attributes:
        message: Of the server's process, for a message and its reply.
        train: Of an actor, for one client's training message, guidance included.
        evaluate: Of an actor, for one client's evaluation.
        save: Of an actor, for handing over one client's state.
        fuse: Of the server's process, for a fusion.
        start: Until the actors are up and the data are there.
    """

    message: float
    train: float
    evaluate: float
    save: float = 0.0
    fuse: float = 0.0
    start: float = 0.0


@dataclass(frozen=True)
class RunSize:
    """How large a run is.

    Attributes:
        clients: All of them.
        per_round: Those that are trained in a round.
        evaluated: Those that are evaluated.
        rounds: Rounds.
        actors: Actors, each with a core, or a share of a GPU, of its own.
        evaluate_every: Rounds from one evaluation to the next.
        checkpoint_every: Rounds from one checkpoint to the next.
    """

    clients: int
    per_round: int
    evaluated: int
    rounds: int
    actors: int
    evaluate_every: int = 1
    checkpoint_every: int = 1


@dataclass(frozen=True)
class Forecast:
    """How long a run takes.

    Attributes:
        train: Seconds of a round's training.
        evaluate: Seconds of an evaluation, in the rounds that have one.
        save: Seconds of a checkpoint, in the rounds that have one.
        round: Seconds of a round, the last two spread over all of them.
        run: Seconds of the run.
        busy: Share of a round's training that actors are at work, in [0, 1]: what more of them could gain.
    """

    train: float
    evaluate: float
    save: float
    round: float
    run: float
    busy: float


def forecast(parts: Parts, size: RunSize) -> Forecast:
    """Return how long a run takes (see the top of this file).

    Actors are taken to be equally fast, and to have equally much to do.

    Raises:
        ValueError: There is no actor, or no client to train.
    """
    if size.actors < 1 or size.per_round < 1:
        raise ValueError("there has to be an actor, and a client that is trained")
    train = _phase(size.per_round, parts.train, parts.message, size.actors)
    evaluate = _phase(size.evaluated, parts.evaluate, parts.message, size.actors)
    changed = min(size.clients, size.per_round * size.checkpoint_every)
    save = _phase(changed, parts.save, parts.message, size.actors)
    a_round = train + parts.fuse + evaluate / size.evaluate_every + save / size.checkpoint_every
    run = parts.start + size.clients * parts.message + size.rounds * a_round
    busy = size.per_round * parts.train / (min(size.actors, size.per_round) * train) if train else 0.0
    return Forecast(train, evaluate, save, a_round, run, busy)


def _phase(clients: int, work: float, message: float, actors: int) -> float:
    return max(clients * message, clients / actors * work) + work if clients else 0.0


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
    cluster = connect_ray(Engine())
    try:
        grid = RayGrid(Echo, (), [1.0] * clients, actors=2, cpus_per_actor=0.5, watch=cluster.watch)
        grid.wait_until_ready(600.0)
        try:
            taken = []
            for _ in range(times + 1):
                arrays = {
                    client: arrays_to_record({"x": np.zeros(values, np.float32)}) for client in range(clients)
                }
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
        times = "".join(
            f"{format_duration(s):>12}" for s in (told.train, told.evaluate, told.save, told.round)
        )
        lines.append(f"{size.actors:>8}{times}{format_duration(told.run):>14}{told.busy:>8.0%}")
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
