"""FedKD: the losses by hand in float64, and a server and clients that agree about the shared model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from local_steps import batch_of, features_by_hand, logits_by_hand, small_model
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import hadamard
from several_networks import SeveralNetworks, softmax, step
from small_views import SmallServer
from torch import nn

from fedkd.fusion.strategy import Knowledge
from fedkd.fusion.two_models.low_rank import FACTORS, RANKS, compress
from fedkd.fusion.two_models.mutual_svd import PROJECTION, FedKD
from fedkd.fusion.two_models.shared_model import SHARED_NETWORK
from fedkd.fusion.weights.parameters import COUNTERS, PARAMETERS, pack, unpack
from fedkd.randomness import numpy_generator


def client_of() -> SeveralNetworks:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        projection = nn.Linear(2, 3, bias=False).double()
    return SeveralNetworks(
        small_model(1), **{SHARED_NETWORK: small_model(2, width=2), PROJECTION: projection}
    )


def terms(client: SeveralNetworks) -> dict[str, float]:
    """Return all that the loss is made of, by hand."""
    batch = batch_of(client.model)
    x, y, rows = batch.inputs.numpy(), batch.labels.numpy(), np.arange(len(batch.labels))
    p, q = (softmax(logits_by_hand(client.weights(of), x)) for of in ("model", SHARED_NETWORK))
    seen = features_by_hand(client.weights(SHARED_NETWORK), x) @ client.weights(PROJECTION)["weight"].T
    return {
        "own": float(-np.log(p[rows, y]).mean()),
        "other": float(-np.log(q[rows, y]).mean()),
        "taught": float((q * np.log(q / p)).sum(axis=1).mean()),
        "teaches": float((p * np.log(p / q)).sum(axis=1).mean()),
        "features": float(((features_by_hand(client.weights(), x) - seen) ** 2).mean()),
    }


@pytest.mark.parametrize("least_loss", [0.01, 50.0])
def test_the_loss_equals_the_formula(least_loss):
    client = client_of()
    t = terms(client)
    divisor = max(t["own"] + t["other"], least_loss)
    wanted = t["own"] + t["other"] + (t["taught"] + t["teaches"] + 2 * t["features"]) / divisor
    assert step(FedKD(least_loss=least_loss), client) == pytest.approx(wanted, rel=1e-5)


def slopes(client: SeveralNetworks, of: str, which) -> dict[str, np.ndarray]:
    """Return the gradient of a function of `terms`, by differences."""
    start = client.weights(of)
    found = {}
    for name, values in start.items():
        found[name] = np.zeros(values.shape)
        for place in np.ndindex(values.shape):
            ends = []
            for way in (1e-5, -1e-5):
                changed = {n: v.copy() for n, v in start.items()}
                changed[name][place] += way
                client.load_weights(changed, of)
                ends.append(which(terms(client)))
            found[name][place] = (ends[0] - ends[1]) / 2e-5
    client.load_weights(start, of)
    return found


def test_teacher_projection_and_divisor_have_no_gradient():
    """Each network moves by its own terms alone, W by those of the shared model."""
    client, strategy = client_of(), FedKD()
    begun = terms(client)
    divisor = begun["own"] + begun["other"]
    wanted = {
        "model": slopes(client, "model", lambda t: t["own"] + (t["taught"] + t["features"]) / divisor),
        SHARED_NETWORK: slopes(
            client, SHARED_NETWORK, lambda t: t["other"] + (t["teaches"] + t["features"]) / divisor
        ),
        PROJECTION: slopes(client, PROJECTION, lambda t: t["features"] / divisor),
    }
    before = {of: client.weights(of) for of in wanted}
    step(strategy, client, lr=0.1)
    for of, slope in wanted.items():
        for name, values in client.weights(of).items():
            assert_allclose(values, before[of][name] - 0.1 * slope[name], atol=1e-6, err_msg=f"{of} {name}")


@pytest.mark.parametrize(("round", "energy"), [(1, 0.95), (6, 0.965), (11, 0.98)])
def test_the_energy_threshold_grows_over_rounds(round, energy):
    assert FedKD().energy(round, 11) == pytest.approx(energy)
    assert FedKD().energy(1, 1) == 0.95


class Linear(SeveralNetworks):
    """A client whose shared model is the server's `plain` one."""

    def __init__(self) -> None:
        super().__init__(small_model(1), **{SHARED_NETWORK: nn.Linear(40, 30)})
        self.round, self.rounds = 1, 3


@pytest.mark.parametrize("energy", [0.6, 1.0])
def test_clients_and_server_have_identical_shared_weights(energy):
    strategy = FedKD(shared_model="plain", energy_start=energy, energy_end=energy)
    server = SmallServer(np.zeros((1, 40), np.float32), 30, {})
    first = strategy.prepare(server)
    memory, clients = dict(first.memory), [Linear(), Linear(), Linear()]
    for client in clients:
        strategy.apply(client, first.shared)
    generator = numpy_generator(0, "steps")
    for round, present in ((1, (0, 1)), (2, (1, 2)), (3, (0, 2))):
        uploads, means = [], []
        for index in present:
            client = clients[index]
            client.round = round
            strategy.before_training(client)
            change = generator.normal(size=(30, 2)) @ generator.normal(size=(2, 40))
            weights = client.weights(SHARED_NETWORK)
            assert_array_equal(pack(weights)[PARAMETERS], memory[PARAMETERS])
            change = change + 0.01 * generator.normal(size=change.shape)
            client.load_weights(
                {**weights, "weight": (weights["weight"] + change).astype(np.float32)}, SHARED_NETWORK
            )
            uploads.append(strategy.upload(client))
            means.append(change)
        knowledge = Knowledge(
            clients=present,
            logits=None,
            samples=np.array([1, 3]),
            payload={name: [own[name] for own in uploads] for name in uploads[0]},
            server=server,
            round=round,
            rounds=3,
        )
        guidance = strategy.fuse(knowledge, memory)
        before, memory = memory, guidance.memory
        for index, client in enumerate(clients):
            strategy.apply(client, guidance.personal[0] if index in present else guidance.for_absent)
        like = server.initial_weights("plain")
        moved = unpack(memory, like)["weight"] - unpack(before, like)["weight"]
        exact = 0.25 * means[0] + 0.75 * means[1]
        error = ((moved - exact) ** 2).sum() / (exact**2).sum()
        assert error < 1e-9 if energy == 1.0 else error < 0.5
        if energy < 1.0:
            assert guidance.personal[0][FACTORS].nbytes < 0.5 * before[PARAMETERS].nbytes


@pytest.mark.parametrize("energy", [0.3, 0.5, 1.0])
def test_the_mean_change_ignores_the_order_of_clients(energy):
    """Each client has changed one direction, as much as the others: the mean has equal singular values."""
    strategy = FedKD(shared_model="plain", energy_start=energy, energy_end=energy)
    server = SmallServer(np.zeros((1, 40), np.float32), 30, {})
    memory = strategy.prepare(server).memory
    u, v = np.zeros((30, 16)), np.zeros((40, 16))
    u[5:21], v[7:23] = hadamard(16) / 4, hadamard(16)[::-1] / 4  # float32 has these numbers exactly
    like = server.initial_weights("plain")
    changes = [{**like, "weight": np.outer(u[:, n], v[:, n]), "bias": np.zeros(30)} for n in range(5)]
    uploads = [compress(change, 1.0) | {COUNTERS: pack(like)[COUNTERS]} for change in changes]
    found = []
    for order in ((0, 1, 2, 3, 4), (3, 1, 4, 0, 2), (4, 3, 2, 1, 0), (2, 0, 1, 4, 3)):
        extra = {name: [uploads[n][name] for n in order] for name in uploads[0]}
        knowledge = Knowledge(
            tuple(range(5)), None, np.ones(5), payload=extra, server=server, round=1, rounds=1
        )
        found.append(strategy.fuse(knowledge, memory).personal[0])
    for other in found[1:]:
        assert_array_equal(other[RANKS], found[0][RANKS])
        assert_allclose(other[FACTORS], found[0][FACTORS], atol=1e-6)


def test_untrained_models_upload_factors_of_their_weights():
    client = Linear()
    found = FedKD(shared_model="plain").upload(client)
    assert found.keys() == {FACTORS, RANKS, COUNTERS}
    assert_array_equal(found[FACTORS], compress(client.weights(SHARED_NETWORK), 0.95)[FACTORS])
