"""Strategies with averaged weights against float64 computations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fedkd.clients.client import Client
from fedkd.clients.factory import ClientFactory
from fedkd.data.federated import load_federated_data
from fedkd.fusion.strategy import Knowledge
from fedkd.fusion.weights.fedala import FedALA, top_layers
from fedkd.fusion.weights.parameters import unpack
from fedkd.plan.load import parse_plan
from fedkd.randomness import numpy_generator
from fedkd.server.models import TransferSet, TransferSetModels

LR, EPOCHS, ROUNDS = 0.2, 2, 3
WIDTH = 6
Weights = dict[str, np.ndarray]
PRESENT = [[0, 1], [0], [0, 1]]
"""Clients of each round."""


class Federation:
    """Two clients of unequal size with small networks in full-batch steps, and a server, without messages."""

    def __init__(self, tables: Mapping[str, Any], strategy: str, **options: Any) -> None:
        changed: dict[str, Any] = {
            "rounds": ROUNDS,
            "data": tables["data"]
            | {
                "clients": 2,
                "partition": {"scheme": "quantity", "alpha": 1.0},
                "transfer": {"size": 0},
            },
            "clients": [{"model": "mlp", "args": {"hidden": [WIDTH]}}],
            "training": {"optimizer": "sgd", "lr": LR, "batch_size": 2000, "local_epochs": EPOCHS},
        }
        changed |= {key: value for key, value in options.items() if key in tables or key == "faults"}
        fusion = {key: value for key, value in options.items() if key not in changed}
        self.plan = parse_plan({**tables, **changed, "fusion": {"strategy": strategy, **fusion}})
        self.strategy = self.plan.strategy
        self.data = load_federated_data(self.plan.scenario)
        factory = ClientFactory(self.plan, self.data)
        self.clients: list[Client] = [factory.build(n) for n in range(2)]
        self._newest: tuple[int, Weights] | None = None

    def run(self, rounds: Sequence[Sequence[int]], after: int = 0) -> None:
        """Run rounds of the clients named; whoever is in one has what the round before it has made."""
        for round, present in enumerate(rounds, start=after + 1):
            uploads = []
            for n in present:
                self.guide(n)
                self.clients[n].complete(self.clients[n].train(round))
                uploads.append(self.clients[n].upload(round))
            knowledge = Knowledge(
                clients=tuple(present),
                logits=None,
                samples=np.array([self.clients[n].num_train_samples for n in present]),
                payload={name: [upload[name] for upload in uploads] for name in uploads[0]},
                server=TransferSetModels(self.plan, TransferSet.of(self.data, 0, 10), round),
            )
            self._newest = round, dict(self.strategy.fuse(knowledge, {}).shared)

    def guide(self, n: int) -> None:
        if self._newest is not None:
            round, arrays = self._newest
            self.clients[n].complete(self.clients[n].learn(arrays, round))

    def shard(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        own = self.data.client(n)
        return own.train_x.reshape(len(own.train_x), -1).astype(np.float64), own.train_y


def gradient(weights: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
    """Return the gradient of the mean cross entropy of a network with one hidden layer of ReLUs."""
    hidden = np.maximum(x @ weights["body.1.weight"].T + weights["body.1.bias"], 0.0)
    z = hidden @ weights["head.weight"].T + weights["head.bias"]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1.0
    p /= len(y)
    back = (p @ weights["head.weight"]) * (hidden > 0)
    return {
        "body.1.weight": back.T @ x,
        "body.1.bias": back.sum(axis=0),
        "head.weight": p.T @ hidden,
        "head.bias": p.sum(axis=0),
    }


def loss_of(weights: Weights, x: np.ndarray, y: np.ndarray) -> float:
    hidden = np.maximum(x @ weights["body.1.weight"].T + weights["body.1.bias"], 0.0)
    z = hidden @ weights["head.weight"].T + weights["head.bias"]
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]))


def descend(weights: Weights, shard: tuple[np.ndarray, np.ndarray], epochs: int, part: str) -> Weights:
    for _ in range(epochs):
        slopes = gradient(weights, *shard)
        weights = {n: w - LR * slopes[n] * n.startswith(part) for n, w in weights.items()}
    return weights


def doubles(weights: Mapping[str, np.ndarray]) -> Weights:
    return {name: values.astype(np.float64) for name, values in weights.items()}


Phases = list[tuple[int, str]]
ALL: Phases = [(EPOCHS, "")]
CASES: dict[str, tuple[dict[str, Any], Phases, str]] = {
    "fedper": ({}, ALL, "body"),
    "lg_fedavg": ({}, ALL, "head"),
    "fedrep": ({"head_epochs": 3}, [(3, "head"), (EPOCHS, "body")], "body"),
    "fedbabu": ({}, [(EPOCHS, "body")], "body"),
    "moon": ({"mu": 0.0}, ALL, ""),
    "fedntd": ({"beta": 0.0}, ALL, ""),
    "fedala": ({"lr": 0.0}, ALL, ""),
}
"""Options, the phases of a local training and which part they train, and which part is averaged; the whole of
it is FedAvg, a limit of the last three."""


@pytest.mark.parametrize("strategy", CASES)
def test_personal_strategies_equal_a_float64_computation(strategy, digits_scenario):
    options, phases, shared = CASES[strategy]
    federation = Federation(digits_scenario, strategy, **options)
    sizes = [len(federation.shard(n)[1]) for n in range(2)]
    assert sizes[0] != sizes[1]
    models = [doubles(client.weights()) for client in federation.clients]
    assert_same(models[0], models[1], 0.0)
    average: Weights = {}
    for present in PRESENT:
        for n in present:
            models[n] |= average
            for epochs, part in phases:
                models[n] = descend(models[n], federation.shard(n), epochs, part)
        total = sum(sizes[n] for n in present)
        average = {
            name: sum(sizes[n] / total * models[n][name] for n in present)
            for name in models[0]
            if name.startswith(shared)
        }
    federation.run(PRESENT)
    for n, client in enumerate(federation.clients):
        assert_same(client.weights(), models[n], 2e-6)
        federation.guide(n)
        assert_same(client.weights(), models[n] | average, 2e-6)


def assert_same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], atol: float) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert_allclose(values, other[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("strategy", "options", "phase"),
    [("fedbabu", {"tune_epochs": 3}, (3, "")), ("fedrep", {"head_epochs": 4}, (4, "head"))],
)
def test_the_training_after_the_last_fusion_differs(strategy, options, phase, digits_scenario):
    federation = Federation(digits_scenario, strategy, **options)
    federation.run(PRESENT)
    for n, client in enumerate(federation.clients):
        federation.guide(n)
        expected = descend(doubles(client.weights()), federation.shard(n), *phase)
        client.complete(client.train(ROUNDS + 1))
        assert_same(client.weights(), expected, 2e-6)


def test_a_straggler_trains_one_epoch_of_each_phase(digits_scenario):
    slow = {"stragglers": 1.0, "straggler_work": 1.0}
    federation = Federation(digits_scenario, "fedrep", faults=slow)
    client = federation.clients[0]
    start = doubles(client.weights())
    client.complete(client.train(1))
    once = descend(descend(start, federation.shard(0), 1, "head"), federation.shard(0), 1, "body")
    assert_same(client.weights(), once, 1e-6)


def test_statistics_of_normalisation_belong_to_the_body(digits_scenario):
    model = {"model": "resnet8", "args": {"norm": "batch"}}
    federation = Federation(digits_scenario, "fedper", clients=[model])
    federation.run([[0, 1]])
    trained = [client.weights() for client in federation.clients]
    sizes = np.array([client.num_train_samples for client in federation.clients])
    federation.guide(0)
    arrived = federation.clients[0].weights()
    means = [name for name in arrived if name.endswith(("running_mean", "running_var"))]
    assert means
    for name in means:
        assert_allclose(
            arrived[name],
            np.average([own[name] for own in trained], axis=0, weights=sizes),
            rtol=1e-5,
            atol=1e-6,
        )
    assert np.array_equal(arrived["head.weight"], trained[0]["head.weight"])
    assert federation.clients[0].memory == {}


# FedALA -------------------------------------------------------------------------------------------------


def mixed(received: Weights, own: Weights, rates: Weights) -> Weights:
    return received | {name: own[name] + (received[name] - own[name]) * rates[name] for name in rates}


def search(
    received: Weights,
    own: Weights,
    rates: Weights,
    batches: list[tuple[np.ndarray, np.ndarray]],
    passes: int,
    lr: float,
) -> tuple[Weights, list[float]]:
    losses = []
    for _ in range(passes):
        of_pass = []
        for x, y in batches:
            now = mixed(received, own, rates)
            of_pass.append((loss_of(now, x, y), len(y)))
            slopes = gradient(now, x, y)
            rates = {
                name: np.clip(rate - lr * slopes[name] * (received[name] - own[name]), 0, 1)
                for name, rate in rates.items()
            }
        losses.append(sum(loss * size for loss, size in of_pass) / sum(size for _, size in of_pass))
    return rates, losses


@pytest.mark.parametrize("layers", [1, 5])
def test_fedala_equals_a_float64_computation(layers, digits_scenario):
    lr = 20.0  # steps of the weights are small, so that those of the rates are too
    training = {"optimizer": "sgd", "lr": LR, "batch_size": 300, "local_epochs": EPOCHS}
    federation = Federation(digits_scenario, "fedala", layers=layers, lr=lr, passes=4, training=training)
    client, (x, y) = federation.clients[0], federation.shard(0)
    chosen = round(0.8 * len(y))
    names = ["head.weight", "head.bias"] if layers == 1 else list(client.weights())
    rates: Weights = {name: np.ones(client.weights()[name].shape) for name in names}
    for number in (1, 2):
        federation.run([[0, 1]], after=number - 1)
        assert federation._newest is not None
        received = doubles(unpack(federation._newest[1], client.weights()))
        own = doubles(client.weights())
        drawn = numpy_generator(7, "strategy-ala", client=0, round=number).permutation(len(y))[:chosen]
        batches = [(x[rows], y[rows]) for rows in np.split(drawn, range(300, len(drawn), 300))]
        rates, _ = search(received, own, rates, batches, 4 if number == 1 else 1, lr)
        federation.guide(0)
        assert_same(client.weights(), mixed(received, own, rates), 5e-6)
        assert any(((rate > 0.001) & (rate < 0.999)).any() for rate in rates.values())


def test_the_first_fedala_search_ends_on_convergence_or_at_its_limit():
    class Counting:
        def __init__(self, losses: Callable[[int], float]) -> None:
            self.calls, self._losses = 0, losses

        batch_size = 100
        memory: dict[str, np.ndarray]

        def own_rows(self):
            return np.arange(10)

        def trainable(self):
            return ("head.weight",)

        def weights(self):
            return {"head.weight": np.zeros(2, np.float32)}

        def load_weights(self, weights):
            self.loaded = weights

        def generator(self, purpose):
            return np.random.default_rng(0)

        def private_gradient(self, weights, of):
            def gradient(values, rows):
                self.calls += 1
                return self._losses(self.calls), {"head.weight": np.zeros(2)}

            return gradient

    arrays = {"parameters": np.ones(2, np.float32), "counters": np.empty(0, np.int64)}
    for losses, first in ((lambda n: 1.0, 10), (lambda n: max(1.0, 5.0 - n / 4), 25), (lambda n: n % 2, 100)):
        client, strategy = Counting(losses), FedALA()
        client.memory = {"own/head.weight": np.zeros(2, np.float32)}
        strategy.apply(client, arrays)
        assert client.calls == first
        strategy.before_training(client)
        strategy.apply(client, arrays)
        assert client.calls == first + 1, "later there is one pass"


def test_unused_averages_leave_no_state(digits_scenario):
    """Whoever is evaluated between two trainings meets several, and goes on from the newest alone."""
    ends = []
    for rounds_met in ((1, 2), (2,)):
        federation = Federation(digits_scenario, "fedala", lr=20.0)
        federation.run([[0, 1]])
        client, arrays = federation.clients[0], dict(federation._newest[1])
        other = arrays | {"parameters": arrays["parameters"] * 1.5}
        for round in rounds_met:
            client.complete(client.learn(arrays if round == 1 else other, round))
        client.complete(client.train(3))
        ends.append((client.weights(), dict(client.memory)))
    assert_same(ends[0][0], ends[1][0], 0.0)
    assert_same(ends[0][1], ends[1][1], 0.0)


def test_layers_are_selected_by_name():
    names = ("a.0.weight", "a.0.bias", "b.weight", "head.weight", "head.bias")
    assert top_layers(names, 1) == ["head.weight", "head.bias"]
    assert top_layers(names, 2) == ["b.weight", "head.weight", "head.bias"]
    assert top_layers(names, 9) == list(names)
