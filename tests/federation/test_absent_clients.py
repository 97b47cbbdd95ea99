"""Absent clients continue from the newest student of their architecture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from numpy.testing import assert_allclose, assert_array_equal
from stopping import StopInRound

import fedkd
from fedkd.errors import Interrupted
from fedkd.federation.checkpoint import CheckpointStore
from fedkd.federation.manifest import Checkpoint
from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.fusion.weights.feddf import FedDF
from fedkd.fusion.weights.parameters import COUNTERS, PARAMETERS
from fedkd.plan.load import load_scenario

pytestmark = pytest.mark.usefixtures("no_report")

CLIENTS, ROUNDS = 6, 6


@pytest.fixture
def tables(digits_scenario) -> dict[str, Any]:
    """Six clients of two architectures; two take part in a round, of which only the last is evaluated."""
    partition = {"scheme": "dirichlet", "alpha": 1.0, "samples_per_client": 60}
    return digits_scenario | {
        "seed": 0,  # in some rounds all who take part are of one architecture
        "rounds": ROUNDS,
        "clients_per_round": 2,
        "evaluate_every": ROUNDS,
        "clients": [{"model": "mlp", "args": {"hidden": [16]}}, {"model": "lenet"}],
        "data": digits_scenario["data"] | {"clients": CLIENTS, "partition": partition},
        "fusion": {"strategy": "feddf", "server_epochs": 2},
    }


def run(tables: dict[str, Any], folder: Path, **options: Any) -> list[dict]:
    path = folder.parent / f"{folder.name}.toml"
    path.write_text(tomli_w.dumps(tables))
    return fedkd.run(load_scenario(path), out=folder, **options).metrics()


def saved(folder: Path) -> Checkpoint:
    checkpoint = CheckpointStore(folder).latest()
    assert checkpoint is not None
    return checkpoint


def model_of(checkpoint: Checkpoint, client: int) -> dict[str, np.ndarray]:
    state = checkpoint.clients[client]
    return {n.removeprefix("model/"): values for n, values in state.items() if n.startswith("model/")}


def assert_learned_the_same(first: Checkpoint, second: Checkpoint) -> None:
    assert first.clients.keys() == second.clients.keys() == set(range(CLIENTS))
    for client in range(CLIENTS):
        one, other = model_of(first, client), model_of(second, client)
        assert one.keys() == other.keys()
        for name, values in one.items():
            assert values.tobytes() == other[name].tobytes(), (client, name)


@dataclass
class Fusion:
    """What the server received and made in a round."""

    knowledge: Knowledge
    guidance: Guidance
    architectures: list[str]


@pytest.fixture
def fusions(monkeypatch) -> list[Fusion]:
    """What is fused from here on, in order."""
    seen: list[Fusion] = []
    fuse = FedDF.fuse

    def recorded(self, knowledge, memory):
        guidance = fuse(self, knowledge, memory)
        architectures = [knowledge.server.architecture_of(n) for n in range(CLIENTS)]
        seen.append(Fusion(knowledge, guidance, architectures))
        return guidance

    monkeypatch.setattr(FedDF, "fuse", recorded)
    return seen


def starts(fusions: list[Fusion]) -> list[tuple[int, int, int, bool]]:
    """Check that every upload is the newest student of the client's architecture.

    Only for clients that do not train: what they upload is where they would have begun.

    Returns:
        Round, client, rounds ago that its architecture's newest student was made, and whether the client took
        part in the making; without those that begin with the initial weights.
    """
    newest: dict[str, tuple[int, dict[str, np.ndarray], tuple[int, ...]]] = {}
    found = []
    for round, fusion in enumerate(fusions):
        knowledge = fusion.knowledge
        for row, client in enumerate(knowledge.clients):
            architecture = fusion.architectures[client]
            if architecture in newest:
                made, student, makers = newest[architecture]
                for name in (PARAMETERS, COUNTERS):
                    assert_array_equal(knowledge.payload[name][row], student[name])
                found.append((round, client, round - made, client in makers))
        for row, client in enumerate(knowledge.clients):
            student = dict(fusion.guidance.personal[row])
            newest[fusion.architectures[client]] = (round, student, knowledge.clients)
    return found


@pytest.mark.parametrize("evaluate_every", [ROUNDS, 2])
@pytest.mark.parametrize("other", [{"model": "lenet"}, {"model": "resnet8", "args": {"norm": "batch"}}])
def test_an_absent_client_starts_from_the_newest_student(other, evaluate_every, tables, fusions, tmp_path):
    """Nobody trains, so what a client uploads is where its training would have begun."""
    changes = {
        "clients": [tables["clients"][0], other],
        "faults": {"stragglers": 1.0, "straggler_work": 0.0},
        "evaluate_every": evaluate_every,
    }
    run(tables | changes, tmp_path / "run")
    found = starts(fusions)
    assert len(fusions) == ROUNDS and len(set(fusions[0].architectures)) == 2
    away = [row for row in found if not row[3]]
    assert len(away) >= 4, "clients that had no part in the newest student"
    assert any(ago > 1 for _, _, ago, _ in found), "an architecture that missed a round keeps its student"
    students = [arrays[PARAMETERS].tobytes() for f in fusions for arrays in f.guidance.personal]
    assert len(set(students)) >= ROUNDS, "students differ from round to round"


def test_evaluation_frequency_does_not_change_learning(tables, tmp_path):
    rows = {}
    for every in (1, 4, ROUNDS):
        metrics = run(tables | {"evaluate_every": every}, tmp_path / str(every))
        rows[every] = [row for row in metrics if (row["split"], row["metric"]) == ("train", "loss")]
    assert rows[1] == rows[4] == rows[ROUNDS] and len(rows[1]) == 3 * ROUNDS
    for every in (1, 4):
        assert_learned_the_same(saved(tmp_path / str(every)), saved(tmp_path / str(ROUNDS)))


@pytest.mark.parametrize("stop", range(1, ROUNDS))
def test_a_resumed_run_still_sends_waiting_students(stop, tables, tmp_path):
    run(tables, tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        run(tables, tmp_path / "stopped", observers=[StopInRound(stop)])
    server = saved(tmp_path / "stopped").server
    owed = [values.tolist() for n, values in server.items() if "/missed/" in n and n.endswith("/clients")]
    assert 1 <= len(owed) <= 2, "one record for each architecture that has a student"
    fedkd.resume(tmp_path / "stopped")
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("unbroken", "stopped")]
    assert metrics[0] == metrics[1]
    assert_learned_the_same(saved(tmp_path / "unbroken"), saved(tmp_path / "stopped"))


@pytest.mark.parametrize("evaluate_every", [1, 3])
@pytest.mark.parametrize(
    "who",
    [{"clients_per_round": CLIENTS}, {"clients_per_round": 2}, {"faults": {"dropout": 0.4}}],
    ids=["all", "sampled", "dropouts"],
)
def test_feddf_without_distillation_equals_fedavg(who, evaluate_every, tables, tmp_path):
    """With one architecture and no distillation nothing is left but federated averaging."""
    rows, same = {}, {"clients": tables["clients"][:1], "evaluate_every": evaluate_every, **who}
    fusions = {
        "feddf": {"strategy": "feddf", "server_epochs": 0},
        "fedavg": {"strategy": "flwr:FedAvg"},
    }
    for name, fusion in fusions.items():
        metrics = run(tables | same | {"fusion": fusion}, tmp_path / name)
        rows[name] = {
            (row["round"], row["client"], row["split"], row["metric"]): row["value"]
            for row in metrics
            if row["metric"] in ("loss", "accuracy")
        }
    assert rows["feddf"].keys() == rows["fedavg"].keys()
    assert rows["fedavg"][ROUNDS, None, "global", "accuracy"] > 0.25  # a tenth by chance
    assert_allclose(list(rows["feddf"].values()), list(rows["fedavg"].values()), rtol=1e-4)

    server = saved(tmp_path / "fedavg").server
    averaged = {n.removeprefix("weights/"): v for n, v in server.items() if n.startswith("weights/")}
    for client in range(CLIENTS):
        ours = model_of(saved(tmp_path / "feddf"), client)
        assert ours.keys() == averaged.keys()
        for name, values in averaged.items():
            assert_allclose(ours[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
