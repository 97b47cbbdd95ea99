"""Every built-in strategy in a whole federation: mixed models, absent clients, interruptions, two engines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from on_actors import SharedActors, shared_actors
from stopping import StopInRound

import fedkd
from fedkd.data.federated import load_federated_data
from fedkd.errors import Interrupted
from fedkd.fusion.capabilities import capabilities_of
from fedkd.fusion.registry import STRATEGIES, make_strategy
from fedkd.plan.load import load_scenario

pytestmark = pytest.mark.usefixtures("no_report")

SMALL: dict[str, dict[str, Any]] = {
    "cfd": {"server_model": "mlp", "server_args": {"hidden": [16]}, "server_epochs": 2, "bits_down": 3},
    "dsfl": {
        "samples_per_round": 20,
        "filters": [{"by": "confidence", "quantile": 0.2, "at": "upload"}, {"by": "agreement"}],
    },
    "feddf": {"server_epochs": 2},
    "fedmd": {"samples_per_round": 20},
    "apfl": {"share_lr": 0.1},
    "fedgh": {"server_epochs": 2},
    "fedgen": {"server_steps": 5},
    "fedgkt": {"server_epochs": 2, "server_hidden": [16]},
    "fedkd_wu": {"shared_args": {"hidden": [8]}},
    "fedmrl": {"shared_args": {"hidden": [8]}},
    "fedproto": {"inference": "prototypes"},
    "fedtgp": {"server_epochs": 2, "inference": "prototypes"},
    "fml": {"shared_args": {"hidden": [8]}},
    "path": {"steps": 3},
    "pfedme": {"server_share": 0.5},
    "fedet": {"server_model": "mlp", "server_args": {"hidden": [16]}, "server_epochs": 2},
    "fedhkd": {"noise": 0.1},
    "fedhkt": {"server_model": "mlp", "server_args": {"hidden": [16]}, "server_epochs": 2, "clusters": 2},
    "message": {"questions": 0.5},
    "mhat": {"server_model": "mlp", "server_args": {"hidden": [16]}, "server_epochs": 2},
    "kta": {"filters": [{"by": "relevance", "quantile": 0.3}], "upload_top": 3},
    "knfu": {"stale_decay": 0.5, "distribution_momentum": 0.5},
    "scarlet": {"samples_per_round": 20, "cache_rounds": 2},
    "selective_fd": {"ambiguity": 2.0},
}
"""Hyper-parameters that make a strategy cheap, or make it use what its defaults leave aside."""
MLP = {"model": "mlp", "args": {"hidden": [84]}}  # as many features as LeNet, which `fedproto` compares
NETWORKS = [MLP, {"model": "lenet"}]
FOREST = {"model": "random-forest", "args": {"trees": 5}}


CLIENTS = 4
TABLES: dict[str, Any] = {
    "name": "end-to-end",
    "seed": 7,
    "rounds": 3,
    "clients_per_round": 3,
    "data": {
        "dataset": "digits",
        "clients": CLIENTS,
        "partition": {"scheme": "dirichlet", "alpha": 1.0, "samples_per_client": 50},
        "transfer": {"source": "holdout", "size": 60},
        "test_size": 100,
    },
    "faults": {"dropout": 0.3, "stragglers": 0.3},
    "engine": {"kind": "inline"},
}
"""Four clients, of whom three are sampled; some drop out and some are slow."""
ALL = sorted(
    name
    for name in STRATEGIES.builtin
    if capabilities_of(STRATEGIES.load(name)).learner is None
    and not {"class_stream", "masks"} & make_strategy(name, {}).capabilities.needs
)
"""Those without a stream of tasks."""


def clients_for(strategy: str) -> list[dict[str, Any]]:
    """Return the most mixed federation that a strategy can serve."""
    needs = make_strategy(strategy, {}).capabilities.needs
    if "adapter" in needs:
        ranks = [2] if "one_architecture" in needs else [2, 4]
        return [MLP | {"adapter": {"rank": rank}} for rank in ranks]
    if "one_architecture" in needs:
        return [MLP]
    return NETWORKS if needs & {"gradients", "features", "weights"} else [*NETWORKS, FOREST]


def write(folder: Path, strategy: str, **changes: Any) -> Path:
    training = {"lr": 0.01, "batch_size": 20}
    if "plain_sgd" in make_strategy(strategy, {}).capabilities.needs:
        training |= {"optimizer": "sgd"}
    path = folder / "scenario.toml"
    fusion = {"strategy": strategy, **SMALL.get(strategy, {})}
    # Links that go one way, and of two architectures: masses are no longer 1.
    graph = "one_peer_exponential" if "graph" in make_strategy(strategy, {}).capabilities.needs else "star"
    tables = TABLES | {"training": training, "fusion": fusion, "topology": {"graph": graph}}
    path.write_text(tomli_w.dumps(tables | changes))
    return path


@pytest.fixture(scope="module")
def actors(ray_session, tmp_path_factory) -> Iterator[SharedActors]:
    scenarios = [
        load_scenario(write(tmp_path_factory.mktemp("actors"), strategy, clients=clients_for(strategy)))
        for strategy in ALL
    ]
    with shared_actors(scenarios, [load_federated_data(scenarios[0])] * len(ALL)) as actors:
        yield actors


def check_rows(result: fedkd.RunResult) -> None:
    rows = result.metrics()
    assert rows and all(math.isfinite(row["value"]) for row in rows)
    last = [row for row in rows if row["round"] == result.summary["rounds"] and row["metric"] == "accuracy"]
    assert {row["split"] for row in last} == {"local", "global"}


@pytest.mark.parametrize("strategy", ALL)
def test_every_strategy_resumes_with_mixed_models_and_absent_clients(strategy, actors, tmp_path):
    """A run that is stopped in this process, and goes on, is one on actors that nothing has stopped."""
    path = write(tmp_path, strategy, clients=clients_for(strategy))
    with pytest.raises(Interrupted):
        fedkd.run(load_scenario(path), out=tmp_path / "stopped", observers=[StopInRound(1)])
    result = fedkd.resume(tmp_path / "stopped")
    check_rows(result)
    metrics = (tmp_path / "stopped" / "metrics.jsonl").read_bytes()
    assert actors.metrics(ALL.index(strategy), tmp_path / "actors") == metrics


@pytest.mark.parametrize("strategy", ALL)
def test_every_strategy_runs_with_one_client(strategy, tmp_path):
    adapted = "adapter" in make_strategy(strategy, {}).capabilities.needs
    clients = clients_for(strategy)[:1] if adapted else [MLP]
    changes = {"rounds": 2, "clients_per_round": 1, "clients": clients, "faults": {}}
    alone = changes | {"data": TABLES["data"] | {"clients": 1}}
    check_rows(fedkd.run(write(tmp_path, strategy, **alone), out=tmp_path / "alone"))
