"""FOT in whole runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stopping import StopInRound

import fedkd
from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.errors import Interrupted, UserError
from fedkd.federation.checkpoint import CheckpointStore
from fedkd.models.zoo.mlp import mlp
from fedkd.plan.load import parse_plan, parse_scenario
from fedkd.scenario.schema import Orthogonal
from fedkd.server.orthogonal import OrthogonalTraining, WeightRoles, exchanged_bytes
from fedkd.simulation.runner import RunResult
from fedkd.simulation.scenario_check import check_plan
from fedkd.storage.namespaces import strip_prefix
from fedkd.tracking.wording import format_bytes
from fedkd.training.weights import weights_of

pytestmark = pytest.mark.usefixtures("no_report")

HIDDEN = 12
LAYERS = {"body.1": 64, "body.3": HIDDEN, "head": HIDDEN}
"""Inputs of every layer of the network."""


def tables_of(digits: dict) -> dict:
    """Return two tasks of permuted digits, two rounds each; of four clients two take part in a round."""
    del digits["rounds"]
    data = digits["data"] | {"transfer": {"size": 0}, "test_size": 40}
    data["partition"] = {"scheme": "shards", "shards_per_client": 2, "samples_per_client": 40}
    return digits | {
        "clients_per_round": 2,
        "data": data,
        "clients": [{"model": "mlp", "args": {"hidden": [HIDDEN, HIDDEN]}}],
        "training": {"optimizer": "sgd", "lr": 0.1, "batch_size": 8},
        "fusion": {"strategy": "flwr:FedAvg", "orthogonal": {"threshold": 0.9, "width": 40}},
        "continual": {
            "learner": "naive",
            "rounds_per_task": 2,
            "tasks": {"kind": "permuted", "count": 2, "permute_first": True},
        },
    }


@pytest.fixture
def tables(digits_scenario) -> dict:
    return tables_of(digits_scenario)


@pytest.fixture(scope="module")
def pair(make_digits_scenario, tmp_path_factory) -> tuple[RunResult, RunResult]:
    """A run whose average is held back, and one whose average is not."""
    folder = tmp_path_factory.mktemp("pair")
    held = tables_of(make_digits_scenario())
    free = held | {"fusion": {"strategy": "flwr:FedAvg"}}
    return run(held, folder / "held"), run(free, folder / "free")


def run(tables: dict, out: Path) -> RunResult:
    return fedkd.run(parse_scenario(tables), out=out)


def saved(folder: Path, round: int) -> dict[str, np.ndarray]:
    """Return the server's state after the last round."""
    checkpoint = CheckpointStore(folder).latest()
    assert checkpoint is not None and checkpoint.round == round
    return dict(checkpoint.server)


@pytest.mark.parametrize("strategy", ["FedAdam", "FedAvgM"])
def test_a_resumed_run_preserves_protected_subspaces(strategy, tables, tmp_path):
    """Not by momentum from before either; biases stay altogether."""
    given = {"server_momentum": 0.9} if strategy == "FedAvgM" else {"eta": 0.02}
    tables["fusion"] = {**tables["fusion"], "strategy": f"flwr:{strategy}", **given}
    whole, folder = run(tables, tmp_path / "whole").folder, tmp_path / "stopped"
    with pytest.raises(Interrupted):
        fedkd.run(parse_scenario(tables), out=folder, observers=[StopInRound(2)])
    early = saved(folder, 2)
    fedkd.resume(folder)
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    late = saved(folder, 4)
    bases = strip_prefix("orthogonal/basis/", early)
    assert bases.keys() == LAYERS.keys()
    for layer, basis in bases.items():
        name, bias = f"weights/{layer}.weight", f"weights/{layer}.bias"
        moved = late[name].astype(np.float64) - early[name]
        assert np.abs(moved).max() > 1e-3
        np.testing.assert_allclose(moved @ basis, 0.0, atol=2e-6)
        assert late[bias].tobytes() == early[bias].tobytes()
        grown = late[f"orthogonal/basis/{layer}"]
        assert grown[:, : basis.shape[1]].tobytes() == basis.tobytes() and grown.shape[1] > basis.shape[1]
        np.testing.assert_allclose(grown.T @ grown, np.eye(grown.shape[1]), atol=1e-5)


def test_bases_hold_the_required_energy_of_participants_inputs(tables, tmp_path):
    tables["continual"]["tasks"]["count"] = 1
    tables["fusion"]["orthogonal"] = {"threshold": 0.9}
    result = run(tables, tmp_path)
    server = saved(tmp_path, 2)
    plan = parse_plan(tables)
    clients = ClientFactory(plan, load_data(plan.scenario))
    energy, kept = dict.fromkeys(LAYERS, 0.0), dict.fromkeys(LAYERS, 0.0)
    for index in plan.schedule.participants(2):
        x = clients.build(index).data.train_x
        now = x.reshape(len(x), -1).astype(np.float64)
        for layer in LAYERS:
            energy[layer] += (now**2).sum()
            kept[layer] += ((now @ server[f"orthogonal/basis/{layer}"]) ** 2).sum()
            weight, bias = (server[f"weights/{layer}.{part}"] for part in ("weight", "bias"))
            now = np.maximum(now @ weight.T + bias, 0.0)
    figures = {row["metric"]: row["value"] for row in result.metrics() if row["client"] is None}
    for layer, inputs in LAYERS.items():
        assert 0.85 < kept[layer] / energy[layer] < 0.99
        assert figures[f"protected_energy/{layer}"] == pytest.approx(kept[layer] / energy[layer], abs=0.1)
        rank = server[f"orthogonal/basis/{layer}"].shape[1]
        assert figures[f"rank/{layer}"] == rank
        assert figures[f"protected_share/{layer}"] == pytest.approx(rank / inputs)


def test_the_first_task_equals_plain_training(pair):
    held, free = ([row for row in r.metrics() if "/" not in row["metric"]] for r in pair)
    first = [row for row in held if row["round"] <= 2]
    assert first == [row for row in free if row["round"] <= 2] != []
    assert held != free


def test_traffic_is_sketches_up_and_bases_down(pair):
    """Two clients send sketches after each of two tasks; after the second they are sent what is protected."""
    held, free = (result.summary["final"] for result in pair)
    sketches = 4 * sum(40 * inputs + 1 for inputs in LAYERS.values())
    assert held["bytes_up"] - free["bytes_up"] == 2 * 2 * sketches
    ranks = {r["metric"]: r["value"] for r in pair[0].metrics() if r["round"] == 2}
    bases = 4 * sum(inputs * ranks[f"rank/{layer}"] for layer, inputs in LAYERS.items())
    assert held["bytes_down"] - free["bytes_down"] == 2 * bases


def test_outputs_of_other_tasks_stay_with_separate_heads():
    network = mlp((64,), 9, hidden=[HIDDEN, HIDDEN])
    before = weights_of(network)
    after = {name: values + 1.0 for name, values in before.items()}
    weights = WeightRoles.of(network, (0, 1, 2), [(0, 1, 2), (3, 4, 5), (6, 7, 8)])
    held = OrthogonalTraining(Orthogonal(), weights)
    assert held.confined(before, after, 0)["body.1.bias"] is after["body.1.bias"]
    said = {"sketch/body.1": np.eye(64), "left/body.1": np.array(1.0)}
    held.end_task([{**said, "sketch/body.3": np.eye(HIDDEN), "left/body.3": np.array(1.0)}], [4])
    assert held.bases.keys() == {"body.1", "body.3"}, "the outputs are not projected"
    held.bases["body.3"] = np.eye(HIDDEN, 6, dtype=np.float32)
    moved = {name: values - before[name] for name, values in held.confined(before, after, 1).items()}
    for name in ("head.weight", "head.bias"):
        np.testing.assert_allclose(moved[name][3:6], 1.0, rtol=1e-6)
        assert not moved[name][:3].any() and not moved[name][6:].any()
    assert not moved["body.1.bias"].any() and not moved["body.3.bias"].any()
    wanted = np.repeat([[0.0] * 6 + [1.0] * 6], HIDDEN, axis=0)
    np.testing.assert_allclose(moved["body.3.weight"], wanted, atol=1e-6)


def test_the_threshold_grows_with_the_tasks():
    weights = WeightRoles({"head": 4}, {"head.weight": "head"}, frozenset(), frozenset({"head.weight"}), {})
    held, ranks = (
        OrthogonalTraining(Orthogonal(threshold=0.5, threshold_increment=0.4, energy="sketch"), weights),
        [],
    )
    for _ in range(3):  # each task as if nothing were protected
        held.bases = {}
        held.end_task([{"sketch/head": np.eye(4), "left/head": np.array(1.0)}], [3])
        ranks.append(held.bases["head"].shape[1])
    assert ranks == [2, 4, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "knfu"}, "needs one of Flower's strategies, .* got 'knfu'"),
        ({"strategy": "scaffold"}, "needs one of Flower's strategies"),
        ({"continual": None}, "needs a stream of tasks"),
        ({"order": "shuffled"}, "needs all clients at the same task.*order = 'same' and pace = 'lockstep'"),
        ({"pace": "uniform"}, "needs all clients at the same task"),
        ({"population": {"late": 0.5}}, "needs all clients at the same task"),
    ],
)
def test_fot_refuses_unsupported_streams_and_strategies(changes, message, tables):
    tables["continual"]["tasks"] |= {key: changes[key] for key in ("order", "pace") if key in changes}
    tables["fusion"] |= {key: changes[key] for key in ("strategy",) if key in changes}
    tables |= {key: changes[key] for key in ("population", "continual") if key in changes}
    found = {key: value for key, value in tables.items() if value is not None}
    with pytest.raises(UserError, match=message) as caught:
        parse_scenario(found)
    assert caught.value.key == "fusion.orthogonal"


def test_unsupported_networks_are_refused(tables, tmp_path):
    tables["clients"] = [{"model": "resnet8", "args": {"norm": "batch"}}]
    with pytest.raises(UserError, match=r"running statistics .*learner 'naive'.*norm = 'group'") as caught:
        run(tables, tmp_path)
    assert caught.value.key == "fusion.orthogonal"


def test_check_estimates_the_bytes_of_sketches(pair, tables):
    """A run that is held back sends as much more as was said, at the end of each of two tasks."""
    held, free = (result.summary["final"]["bytes_up"] for result in pair)
    plan = parse_plan(tables)
    (told,) = [line for line in check_plan(plan) if "sketches" in line]
    up, most = exchanged_bytes(plan.scenario.fusion.orthogonal, LAYERS)
    assert held - free == 2 * 2 * up
    assert up == sum(4 * (inputs * 40 + 1) for inputs in LAYERS.values())
    assert f"about {format_bytes(2 * up)} of sketches up" in told
    assert f"at most {format_bytes(2 * most)} of protected subspaces down" in told
