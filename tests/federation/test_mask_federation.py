"""Supermasks in whole federations: what clients begin with, send and keep."""

from __future__ import annotations

import numpy as np
import pytest
from stopping import StopInRound

import fedkd
from fedkd.clients.factory import ClientFactory
from fedkd.continual.masks import masks
from fedkd.data.load import load_data
from fedkd.errors import Interrupted, RunFailed, UserError
from fedkd.models.build import build_group_models
from fedkd.plan.checks.requirements import check_requirements
from fedkd.plan.load import parse_plan, parse_scenario
from fedkd.server.by_task import TaskwiseFusion
from fedkd.server.fusing import ServerKnowledge
from fedkd.server.knowledge_cache import Upload

WEIGHTS = 64 * 20 + 20 * 9

pytestmark = pytest.mark.usefixtures("read_once", "no_report")


@pytest.fixture
def tables(digits_scenario) -> dict:
    del digits_scenario["rounds"]
    data = digits_scenario["data"] | {"clients": 4, "transfer": {"size": 0}, "test_size": 40}
    data["partition"] = {"scheme": "iid", "samples_per_client": 30}
    return digits_scenario | {
        "data": data,
        "clients": [{"model": "mlp", "args": {"hidden": [20]}}],
        "fusion": {"strategy": "fedmask"},
        "continual": {
            "learner": "supsup",
            "density": 0.3,
            "rounds_per_task": 2,
            "tasks": {"kind": "split", "count": 3, "classes_per_task": 3},
        },
    }


def federation(tables):
    plan = parse_plan(tables)
    factory = ClientFactory(plan, load_data(plan.scenario))
    clients = {n: factory.build(n) for n in range(plan.scenario.data.clients)}
    return TaskwiseFusion(plan.strategy, lambda task: ServerKnowledge()), clients, plan.schedule


def live(round, fusing, clients, schedule) -> dict[int, Upload]:
    """Run a round; return what clients sent."""
    uploads = {}
    fusing.move({n: schedule.task(n, round) for n in clients})
    for n, client in clients.items():
        client.enter(round)
        client.complete(client.train(round))
        uploads[n] = Upload(round, client.upload(round), client.num_train_samples)
    fusing.fuse(round, uploads, clients)
    for n, client in clients.items():
        parcel = fusing.of(n).mailbox.take(n)
        if parcel is not None:
            client.complete(client.learn(parcel.arrays, parcel.round))
    return uploads


def weights_of(client) -> np.ndarray:
    layers = client.stream.learning.context.layers.values()
    return np.concatenate([layer.module.weight.detach().numpy().ravel() for layer in layers])


def test_clients_start_equal_and_send_one_bit_per_weight(tables):
    fusing, clients, schedule = federation(tables)
    assert len({weights_of(client).tobytes() for client in clients.values()}) == 1
    clients[0].enter(1), clients[1].enter(1)
    assert (clients[0].supermask().bits() == clients[1].supermask().bits()).all()
    uploads = live(1, fusing, clients, schedule)
    assert {upload.size for upload in uploads.values()} == {WEIGHTS // 8 + 1 + 8}
    sent = np.stack([np.unpackbits(uploads[n].arrays["mask"])[:WEIGHTS] for n in range(4)])
    assert (sent.min(axis=0) != sent.max(axis=0)).any(), "clients were divided"
    for client in clients.values():  # what all have stays, what nobody has stays out, layer by layer
        now = np.unpackbits(client.supermask().bits())[:WEIGHTS].astype(bool)
        for layer in (slice(64 * 20), slice(64 * 20, None)):
            votes, own = sent[:, layer].sum(axis=0), now[layer]
            assert own.sum() == sent[0, layer].sum() and votes[own].min() >= votes[~own].max()


def test_free_weights_keep_their_initial_values_in_any_order(tables):
    """Weights that a client trains are untouched on all clients that learn the task with it."""
    tables["seed"] = 3  # orders 1 0 2, 0 1 2, 0 2 1, 2 0 1
    tables["continual"] |= {"learner": "exssnet", "density": 0.2}
    tables["continual"]["tasks"]["order"] = "shuffled"
    fusing, clients, schedule = federation(tables)
    began, known, closed = weights_of(clients[0]), {}, 0
    x = clients[0].data.global_x
    for round in range(1, schedule.rounds + 1):
        before = {n: weights_of(client) for n, client in clients.items()}
        uploads = live(round, fusing, clients, schedule)
        # Masks travel in the first round of two, and from the second task on what is taken.
        size = WEIGHTS // 8 + 1
        assert {upload.size for upload in uploads.values()} == {
            1: {size + 8},
            3: {2 * size + 8},
            5: {2 * size + 8},
        }.get(round, {0})
        if round % 2:
            continue
        for n, client in clients.items():
            context = client.stream.learning.context
            memory = client.stream.learning.learner.memory(context)
            free = np.concatenate(
                [
                    masks.unpack(context.memory[f"free/{name}"], (w.numel(),))
                    for name, w in memory.weights.items()
                ]
            )
            own = [memory.bits(old) for old in range(context.task)]
            alone = [masks.free(b, [o[i] for o in own]) for i, b in enumerate(memory.bits(context.task))]
            closed += sum(map(masks.ones, alone)) - int(free.sum())
            moved = weights_of(client) != before[n]
            assert moved.any() and not (moved & ~free).any()
            for other in clients:
                if schedule.task(other, round) == schedule.task(n, round):
                    assert (before[other][free] == began[free]).all()
            client.end_task()
        for n, client in clients.items():
            for place in range(client.stream.learning.ended + 1):
                model = client.stream.learning.model(place).eval()
                logits = model(client.trainer.jobs.on_device(x)).detach().numpy().tobytes()
                assert known.setdefault((n, place), logits) == logits, "old tasks stay to the bit"
    assert len(known) == 12 and closed > 0, "some weights were closed for others' sake alone"


@pytest.mark.parametrize("learner", ["supsup", "exssnet"])
def test_a_mask_federation_resumes_exactly(learner, tables, tmp_path):
    tables["continual"] |= {"learner": learner}
    tables["continual"]["tasks"] |= {"count": 2}
    tables |= {"clients_per_round": 3, "evaluate_every": 2, "faults": {"poisoned": 0.25, "poison": "random"}}
    whole = fedkd.run(parse_scenario(tables), out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        fedkd.run(parse_scenario(tables), out=tmp_path / "stopped", observers=[StopInRound(2)])
    with pytest.raises(Interrupted):
        fedkd.resume(tmp_path / "stopped", observers=[StopInRound(3)])
    fedkd.resume(tmp_path / "stopped")
    both = [(folder / "metrics.jsonl").read_bytes() for folder in (whole.folder, tmp_path / "stopped")]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"continual": None},
            "needs \\[continual\\] with a learner that has masks; use 'supsup' or 'exssnet'",
        ),
        ({"learner": "er"}, "'er' has no masks over weights that all clients begin with; use 'supsup' or"),
        ({"learner": "packnet"}, "'packnet' has no masks over weights"),
        ({"learner": "ssnet"}, "'ssnet' trains weights of earlier masks"),
        ({"boundaries": "unknown"}, "'supsup' finds tasks by itself"),
        ({"clients": [{"model": "mlp"}, {"model": "lenet"}]}, "averages masks, so all clients need one arch"),
        ({"clients": [{"model": "random-forest"}], "training": {}}, "model 'random-forest' is not a network"),
        ({"learner": "exssnet", "rounds_per_task": 1}, "fixes one in the middle of round 1 of 1; choose"),
        ({"learner": "exssnet", "fusion": {"knowledge_cache": {}}}, "once 'exssnet' has fixed it"),
        (
            {"fusion": {"knowledge_cache": {}, "backward_transfer": True}},
            "'fedmask' changes local training",
        ),
    ],
)
def test_impossible_settings_are_refused(changes, message, tables):
    tables["training"]["local_epochs"] = 2
    tables["continual"]["tasks"]["order"] = "shuffled"
    tables["fusion"] |= changes.get("fusion", {})
    tables |= {key: changes[key] for key in ("clients", "training") if key in changes}
    inner = ("learner", "boundaries", "rounds_per_task")
    tables["continual"] |= {key: changes[key] for key in inner if key in changes}
    if changes.get("learner") in ("er", "packnet"):
        del tables["continual"]["density"]
    if "continual" in changes:
        tables = {key: table for key, table in tables.items() if key != "continual"} | {"rounds": 1}
    plan = parse_plan(tables)
    data = load_data(plan.scenario)
    outputs = 9 if plan.learner is not None else 10
    with pytest.raises(UserError, match=message):
        check_requirements(plan, data, build_group_models(plan.scenario, data.input_shape, outputs))


def test_different_initial_weights_end_the_run(tables, tmp_path, monkeypatch):
    monkeypatch.setattr("fedkd.clients.factory.derive_seed", lambda seed, purpose, client=None: next(seeds))
    seeds = iter(range(100))
    with pytest.raises((RunFailed, UserError), match="needs clients that begin with the same weights"):
        fedkd.run(parse_scenario(tables), out=tmp_path / "run")
