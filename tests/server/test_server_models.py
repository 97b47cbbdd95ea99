"""Training on the server against torch's own optimiser and schedule, step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedkd.data.federated import load_federated_data
from fedkd.errors import TrainingDiverged
from fedkd.models.zoo.mlp import mlp
from fedkd.plan.load import parse_plan
from fedkd.randomness import torch_generator
from fedkd.server.models import TransferSet, TransferSetModels
from fedkd.training.losses import logits_mse
from fedkd.training.weights import load_weights, weights_of


@pytest.fixture
def server(digits_scenario):
    plan = parse_plan(digits_scenario)
    data = load_federated_data(plan.scenario)
    return TransferSetModels(plan, TransferSet.of(data, 0, data.classes), round=2)


def test_training_uses_adam_with_a_cosine_schedule(server, digits_scenario):
    architecture = server.architecture("mlp", {"hidden": [8]})
    start = server.initial_weights(architecture)
    x = torch.from_numpy(server._data.x)
    targets = torch.randn(len(x), 10, generator=torch.Generator().manual_seed(1))
    found = server.train(
        architecture, start, (targets.numpy(),), logits_mse, epochs=3, batch_size=16, lr=0.01
    )
    model = mlp(tuple(x.shape[1:]), 10, hidden=(8,))
    load_weights(model, start)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    steps = 3 * -(-len(x) // 16)
    generator = torch_generator(digits_scenario["seed"], "server-train-1", round=2)
    for step, index in enumerate(
        index for _ in range(3) for index in torch.randperm(len(x), generator=generator).split(16)
    ):
        optimizer.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + np.cos(np.pi * step / steps))
        optimizer.zero_grad()
        logits_mse(model(x[index]), targets[index]).backward()
        optimizer.step()
    for name, values in weights_of(model).items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)


def test_a_diverged_server_model_is_refused_with_advice(server):
    architecture = server.architecture("mlp", {"hidden": [8]})
    start = server.initial_weights(architecture)
    targets = (np.full((len(server._data.x), 10), np.inf, dtype=np.float32),)
    with pytest.raises(
        TrainingDiverged, match=r"server's model diverged; a lower fusion\.server_lr may help"
    ):
        server.train(architecture, start, targets, logits_mse, epochs=1, batch_size=16, lr=0.01)


def test_a_network_of_the_strategy_trains_on_its_batches(server, digits_scenario):
    rows = torch.randn(10, 3, generator=torch.Generator().manual_seed(2))
    classes = torch.arange(10) % 4
    found, model = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    model.load_state_dict(found.state_dict())
    for _ in range(2):  # the second of a round sees other batches than the first
        server.fit(
            found,
            (rows.numpy(), classes.numpy()),
            lambda network, x, y: torch.nn.functional.cross_entropy(network(x), y),
            optimizer="sgd",
            lr=0.1,
            epochs=2,
            batch_size=4,
            weight_decay=0.01,
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    for call in (1, 2):
        generator = torch_generator(digits_scenario["seed"], f"server-fit-{call}", round=2)
        for _ in range(2):
            for index in torch.randperm(10, generator=generator).split(4):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(rows[index]), classes[index]).backward()
                optimizer.step()
    np.testing.assert_allclose(found.weight.detach(), model.weight.detach(), atol=1e-6)
