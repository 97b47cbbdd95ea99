"""What averaging costs the server: the CPU seconds of one aggregation by Flower's strategies.

    python scripts/bench/averaging.py [--clients 100] [--sizes 0.25 45] [--strategies FedAvg FedAdam …]

Clients' weights lie in memory, as they do when Ray has delivered them. What arrives is
opened, averaged and put into the model's precision as in a run. The last column is what each client's
training has to take, in seconds, for the averaging to be a twentieth of a round with two processes.
"""

from __future__ import annotations

import argparse
import logging
import time

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedkd.engine.inline import InlineGrid
from fedkd.federation.compat import assume_identity, node_id_of
from fedkd.federation.flower_averaging import FlowerAveraging
from fedkd.federation.flower_strategies import make_flower_strategy
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record
from fedkd.fusion.weights.weight_exchange import WeightExchange

LAYERS = 10
PROCESSES = 2
SHARE = 0.05
REPEATS = 3


def seconds(name: str, clients: int, megabytes: float) -> float:
    """Return the CPU seconds of one aggregation, the quickest of a few."""
    draws = np.random.default_rng(0)
    size = int(megabytes * 1e6 / 4 / LAYERS)
    first = {f"w{layer}": draws.standard_normal(size, dtype=np.float32) for layer in range(LAYERS)}
    nodes = InlineGrid(lambda message, context: message, lambda client: None, clients)  # type: ignore[arg-type]
    strategy = FlowerAveraging(make_flower_strategy(name, {}), WeightExchange(name), first)
    best = float("inf")
    for round in range(1, REPEATS + 1):
        list(
            strategy.messages("train", round, ConfigRecord(), list(nodes.get_node_ids()))
        )  # some take their start from here
        replies = []
        for client in range(clients):
            message = Message(RecordDict(), node_id_of(client), "train")
            uploaded = {key: values + np.float32(client) for key, values in first.items()}
            content = {
                msg.ARRAYS: arrays_to_record(uploaded),
                msg.METRICS: MetricRecord({msg.NUM_EXAMPLES: client + 1}),
            }
            replies.append(Message(RecordDict(content), reply_to=message))
        begun = time.process_time()
        strategy.fuse(round, replies)
        best = min(best, time.process_time() - begun)
    return best


def main() -> None:
    """Measure and print a Markdown table."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--sizes", nargs="+", type=float, default=[0.25, 45.0], help="MB of a model")
    parser.add_argument("--strategies", nargs="+", default=["FedAvg", "FedAvgM", "FedAdam"])
    args = parser.parse_args()
    assume_identity()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    print(f"{args.clients} clients\n")
    print("| strategy | MB | CPU seconds | a client's training, s |")
    print("| --- | --: | --: | --: |")
    for megabytes in args.sizes:
        for name in args.strategies:
            took = seconds(name, args.clients, megabytes)
            training = took * PROCESSES * (1 - SHARE) / SHARE / args.clients
            print(f"| {name} | {megabytes:g} | {took:.3f} | {training:.2f} |", flush=True)


if __name__ == "__main__":
    main()
