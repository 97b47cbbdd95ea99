"""Federated LoRA: the rules against the exact mean of the changes, and adapters in networks."""

from __future__ import annotations

import numpy as np
import pytest
import tomli_w
import torch
from numpy.testing import assert_allclose, assert_array_equal

import fedkd
from fedkd.cli.main import main
from fedkd.errors import UserError
from fedkd.fusion import Knowledge, make_strategy
from fedkd.fusion.weights.adapters import FedIT, FlexLoRA, FLoRA, HetLoRA, mean_change
from fedkd.fusion.weights.parameters import pack
from fedkd.models import adapters_of, build_model, frozen_base
from fedkd.plan.load import parse_scenario
from fedkd.randomness import numpy_generator
from fedkd.scenario import Adapter, ClientGroup
from fedkd.training import exchanged_weights, load_weights, weights_of

FIVE = ("fedit", "ffa_lora", "flexlora", "flora", "hetlora")
SHARES = np.array([0.5, 0.3, 0.2])


def drawn(ranks, m=6, n=5):
    generator = numpy_generator(0, "factors")
    return [(generator.normal(size=(m, r)), generator.normal(size=(r, n))) for r in ranks]


def scenario(strategy="fedit", adapters=({"rank": 2},), **tables):
    return {
        "seed": 3,
        "rounds": 2,
        "data": {
            "dataset": "digits",
            "clients": 3,
            "partition": {"samples_per_client": 40},
            "transfer": {"size": 20},
            "test_size": 40,
        },
        "clients": [{"model": "mlp", "args": {"hidden": [16]}, "adapter": own} for own in adapters],
        "training": {"optimizer": "sgd", "lr": 0.1, "batch_size": 20},
        "fusion": {"strategy": strategy},
        "engine": {"kind": "inline"},
        **tables,
    }


def run(folder, strategy="fedit", adapters=({"rank": 2},), **tables):
    return fedkd.run(parse_scenario(scenario(strategy, adapters, **tables)), out=folder, report=False)


# Networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape", "targets"), [("mlp", (64,), "linear"), ("lenet", (1, 28, 28), "all")]
)
def test_an_adapter_changes_weights_by_scaled_products_and_trains_nothing_else(model, shape, targets):
    group = ClientGroup(model=model, adapter=Adapter(rank=2, alpha=6.0, targets=targets))
    plain = build_model(ClientGroup(model=model), shape, 10, seed=0)
    network = build_model(group, shape, 10, seed=0)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network.eval()(x), plain.eval()(x))  # B is 0
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name or name.startswith("head.") for name in trained)
    assert frozen_base(network) == {n for n, _ in network.named_parameters()} - trained
    for path, part in adapters_of(network):
        torch.nn.init.normal_(part.lora_B, generator=torch.Generator().manual_seed(1))
        layer = plain.get_submodule(path.partition(".parametrizations")[0])
        with torch.no_grad():
            layer.weight += (3.0 * part.lora_B @ part.lora_A).reshape(layer.weight.shape)
    assert_allclose(network(x).detach(), plain(x).detach(), rtol=1e-4, atol=1e-5)


def test_clients_of_all_ranks_have_one_base_and_a_partial_load_leaves_it():
    networks = [
        build_model(ClientGroup(model="mlp", adapter=Adapter(rank=rank)), (64,), 10, seed=0)
        for rank in (2, 4)
    ]
    first, second = map(weights_of, networks)
    for name in frozen_base(networks[0]):
        assert_array_equal(first[name], second[name])
    load_weights(networks[0], {n: v + 1 for n, v in first.items() if n not in frozen_base(networks[0])})
    for name, values in weights_of(networks[0]).items():
        assert_array_equal(values, first[name] + (name not in frozen_base(networks[0])))


@pytest.mark.parametrize(
    ("adapter", "model", "words"),
    [
        ({"rank": 0}, "mlp", "rank"),
        ({"rank": 17}, "mlp", "must be ≤ 16, the smaller side of layer 'body.1' of 'mlp', got 17"),
        ({"targets": "conv"}, "mlp", "matches no linear or convolutional layer of 'mlp'"),
        ({"targets": ["nothing"]}, "mlp", "matches no linear or convolutional layer of 'mlp'"),
        ({}, "sgd", "needs a network, but model 'sgd' is not one"),
    ],
)
def test_unfit_adapters_are_refused_in_one_line(tmp_path, capsys, adapter, model, words):
    tables = scenario("fedmd", (adapter,))
    tables["clients"][0] |= {"model": model} | ({"args": {}} if model == "sgd" else {})
    if model == "sgd":
        del tables["training"]
    path = tmp_path / "s.toml"
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    status = main(["check", str(path)])
    told = capsys.readouterr().err
    assert status == 2 and words in told and len(told.splitlines()) == 1


@pytest.mark.parametrize("strategy", ["fedit", "ffa_lora", "fedavg", "moon"])
def test_rules_of_one_rank_refuse_others(tmp_path, strategy):
    with pytest.raises(UserError, match=r"one architecture.*with other adapters"):
        run(tmp_path / "run", strategy, ({"rank": 2}, {"rank": 4}))


def test_strategies_of_adapters_need_them(tmp_path):
    with pytest.raises(UserError, match=r"combines adapters, e\.g\. adapter ="):
        run(tmp_path / "run", "flora", (None,))


# Rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [(5, 5, 5), (2, 3, 5)])
def test_flexlora_keeps_the_exact_mean_at_full_rank(ranks):
    factors = drawn(ranks)
    b, a = FlexLoRA().merged(factors, SHARES)
    assert_allclose(b @ a, mean_change(factors, SHARES), rtol=0, atol=1e-10)
    order = [2, 0, 1]
    again = FlexLoRA().merged([factors[n] for n in order], SHARES[order])
    assert_allclose(again[1], a, rtol=0, atol=1e-8)  # canonical signs


def test_flexlora_cuts_to_the_nearest_matrix_of_a_rank():
    factors = drawn((3, 3, 3))
    mean = mean_change(factors, SHARES)
    b, a = FlexLoRA().merged(factors, SHARES)
    lost = np.linalg.svd(mean, compute_uv=False)[2:]
    assert_allclose(np.linalg.norm(mean - b[:, :2] @ a[:2]), np.linalg.norm(lost), rtol=1e-9)


def test_fedit_reports_its_distance_to_the_exact_mean():
    factors = drawn((2, 2, 2))
    merged = FedIT().merged(factors, SHARES)
    mean = sum(p * b @ a for p, (b, a) in zip(SHARES, factors, strict=True))
    wanted = np.linalg.norm(merged[0] @ merged[1] - mean) / np.linalg.norm(mean)
    assert_allclose(FedIT().figures({"w": factors}, {"w": merged}, SHARES)["adapter_gap"], wanted)
    alike = [(b, factors[0][1]) for b, _ in factors]  # one A: FFA-LoRA, whose mean is exact
    merged = FedIT().merged(alike, SHARES)
    assert FedIT().figures({"w": alike}, {"w": merged}, SHARES)["adapter_gap"] < 1e-12


def test_hetlora_pads_and_weighs_by_norms():
    factors = drawn((1, 2, 3))
    norms = np.array([np.linalg.norm(b @ a) for b, a in factors])
    b, a = HetLoRA().merged(factors, SHARES)
    q = norms / norms.sum()
    assert_allclose(b[:, 0], sum(w * f[0][:, 0] for w, f in zip(q, factors, strict=True)))
    assert_allclose(a[2], q[2] * factors[2][1][2])


@pytest.mark.parametrize("name", [*FIVE[:3], "hetlora"])
def test_one_client_gets_its_own_changes_back(name):
    (b, a), *_ = drawn((3,))
    got = make_strategy(name, {}).merged([(b, a)], np.ones(1))
    assert_allclose(got[0] @ got[1], b @ a, rtol=0, atol=1e-10)


PATH = "body.1.parametrizations.weight"


class AdaptedServer:
    """A server with an adapted network of a rank for each client."""

    def __init__(self, ranks):
        self.ranks, self.clients = ranks, len(ranks)

    def architecture_of(self, client):
        return str(self.ranks[client])

    def network(self, architecture):
        adapter = Adapter(rank=int(architecture))
        return build_model(
            ClientGroup(model="mlp", args={"hidden": [16]}, adapter=adapter), (64,), 10, seed=0
        )

    def initial_weights(self, architecture):
        return exchanged_weights(self.network(architecture))

    def upload(self, client, b, a):
        own = self.initial_weights(self.architecture_of(client))
        return pack(own | {f"{PATH}.0.lora_B": b, f"{PATH}.0.lora_A": a})


class AdaptedClient:
    """A client of that server."""

    def __init__(self, server, client):
        self._network = server.network(server.architecture_of(client))

    def network(self):
        return self._network

    def weights(self):
        return exchanged_weights(self._network)

    def load_weights(self, weights):
        load_weights(self._network, weights)

    def generator(self, purpose):
        return numpy_generator(0, purpose)


# Runs ---------------------------------------------------------------------------------------------------

HEAD, HIDDEN, INPUTS = 16 * 10 + 10, 16, 64


def numbers(rank, *, with_a=True):
    """Return the bytes of an upload of the network above: B, A and the head."""
    return 4 * (HIDDEN * rank + INPUTS * rank * with_a + HEAD)


@pytest.mark.parametrize("name", [*FIVE, "fedavg"])
def test_uploads_are_adapters_and_head_and_the_base_travels_once(name, tmp_path):
    final = run(tmp_path / "run", name).summary["final"]
    up = numbers(2, with_a=name != "ffa_lora")
    base = 0 if name == "fedavg" else 4 * (HIDDEN * INPUTS + HIDDEN)
    assert final["bytes_up"] == 2 * 3 * up
    down = 2 * 3 * (numbers(6) if name == "flora" else up) + 3 * base  # the stack has rank 6
    assert final["bytes_down"] == down


@pytest.mark.parametrize("name", FIVE)
def test_a_resumed_run_is_the_unbroken_one(name, tmp_path):
    mixed = ({"rank": 2}, {"rank": 4, "alpha": 4.0}) if name in FIVE[2:] else ({"rank": 2},)
    more = {"clients_per_round": 2, "rounds": 4}
    run(tmp_path / "whole", name, mixed, **more)
    run(tmp_path / "part", name, mixed, **more | {"rounds": 2})
    fedkd.resume(tmp_path / "part", rounds=4)
    one, other = ((tmp_path / folder / "metrics.jsonl").read_bytes() for folder in ("whole", "part"))
    assert one == other


@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 2, 4)])
def test_flora_adds_the_exact_mean_into_the_base_of_server_and_client(ranks):
    server, path, name = AdaptedServer(ranks), f"{PATH}.0.", f"{PATH}.original"
    strategy, factors = FLoRA(), drawn(ranks, 16, 64)
    first = strategy.prepare(server)
    uploads = [server.upload(n, *pair) for n, pair in enumerate(factors)]
    knowledge = Knowledge(
        clients=(0, 1, 2),
        logits=None,
        samples=np.array([5, 3, 2]),
        payload={array: [upload[array] for upload in uploads] for array in uploads[0]},
        server=server,
    )
    guidance = strategy.fuse(knowledge, first.memory)
    scaled = [(16.0 / r * b, a) for r, (b, a) in zip(ranks, factors, strict=True)]
    step = guidance.memory[f"base/{name}"] - first.memory[f"base/{name}"]
    assert_allclose(step, mean_change(scaled, SHARES), rtol=0, atol=1e-4)  # of weights about 50
    for n in range(3):
        client = AdaptedClient(server, n)
        strategy.apply(client, {**guidance.shared, **guidance.personal[n]})
        got = weights_of(client.network())
        assert_array_equal(got[name], guidance.memory[f"base/{name}"])
        assert not got[f"{path}lora_B"].any() and got[f"{path}lora_A"].any()


@pytest.mark.parametrize("name", ["fedmd", "feddf", "scaffold", "fedprox"])
def test_adapters_train_under_other_strategies(name, tmp_path):
    result = run(tmp_path / "run", name)
    assert np.isfinite(result.summary["final"]["accuracy_local"]["mean"])
