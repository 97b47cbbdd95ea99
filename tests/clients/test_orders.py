"""Clients with individual task orders that receive guidance."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.clients.client import Client
from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.plan.load import parse_plan
from fedkd.server.by_task import TaskwiseFusion
from fedkd.server.fusing import ServerKnowledge
from fedkd.server.knowledge_cache import Upload


@pytest.fixture
def tables(digits_scenario) -> dict:
    del digits_scenario["rounds"]
    partition = {"scheme": "iid", "samples_per_client": 24}
    data = {"clients": 4, "partition": partition, "transfer": {"size": 16}, "test_size": 40}
    return digits_scenario | {
        "data": digits_scenario["data"] | data,
        "clients": [{"model": "mlp", "args": {"hidden": [24]}}, {"model": "mlp", "args": {"hidden": [16]}}],
        "fusion": {"strategy": "knfu", "beta": 1.0},
        "continual": {
            "learner": "exssnet",
            "rounds_per_task": 1,
            "tasks": {"kind": "split", "count": 5, "order": "shuffled", "pace": "poisson"},
        },
    }


def federation(tables: dict) -> tuple[TaskwiseFusion, dict[int, Client], object]:
    plan = parse_plan(tables)
    factory = ClientFactory(plan, load_data(plan.scenario))
    clients = {n: factory.build(n) for n in range(plan.scenario.data.clients)}
    return TaskwiseFusion(plan.strategy, lambda task: ServerKnowledge()), clients, plan.schedule


def live(round: int, fusing: TaskwiseFusion, clients: dict[int, Client], schedule) -> dict[int, int]:
    """Run a round; return the task of every client that was taught."""
    uploads, taught = {}, {}
    fusing.move({n: schedule.task(n, round) for n in clients})
    for n in schedule.participants(round):
        clients[n].enter(round)
        clients[n].complete(clients[n].train(round))
        uploads[n] = Upload(round, clients[n].upload(round), clients[n].num_train_samples)
    fusing.fuse(round, uploads, clients)
    for n in uploads:
        parcel = fusing.of(n).mailbox.take(n)
        before = clients[n].predict(clients[n].data.transfer_x)
        clients[n].complete(clients[n].learn(parcel.arrays, parcel.round))
        if (clients[n].predict(clients[n].data.transfer_x) != before).any():
            taught[n] = schedule.task(n, round)
        if schedule.ends(n, round):
            clients[n].end_task()
    return taught


def logits(client: Client, place: int, x: np.ndarray) -> bytes:
    model = client.stream.learning.model(place).eval()
    return model(client.trainer.jobs.on_device(x)).detach().numpy().tobytes()


@pytest.mark.parametrize("learner", ["exssnet", "packnet"])
def test_guidance_keeps_the_logits_of_old_tasks_to_the_bit(learner, tables):
    tables["continual"]["learner"] = learner
    fusing, clients, schedule = federation(tables)
    x = clients[0].data.global_x
    known: dict[tuple[int, int], bytes] = {}
    changed: set[tuple[int, int]] = set()
    for round in range(1, schedule.rounds + 1):
        changed |= set(live(round, fusing, clients, schedule).items())
        for n, client in clients.items():
            for place in range(client.stream.learning.ended + 1):
                now = logits(client, place, x)
                assert known.setdefault((n, place), now) == now, (round, n, place)
    assert len(known) == 4 * 5
    assert len(changed) >= 10, "guidance changed what clients know of the task at hand"


def test_a_learner_is_given_the_tasks_in_its_clients_own_order(tables):
    _, clients, schedule = federation(tables)
    for n, client in clients.items():
        order = schedule.order(n)
        units = client.stream.learning.context.units
        assert [own.tolist() for own in units] == [[2 * t, 2 * t + 1] for t in order]
        for place, task in enumerate(order):
            x, y = client.stream.tensors(place)
            assert np.array_equal(x.numpy(), client.samples.tasks[task].train_x)
            assert np.array_equal(y.numpy(), client.samples.tasks[task].train_y)


def test_a_returning_task_continues_from_its_last_state(tables):
    stream = {"kind": "split", "count": 2, "classes_per_task": 2, "order": "shuffled", "visits": 2}
    tables["continual"]["tasks"] = stream
    fusing, clients, schedule = federation(tables)
    for round in range(1, 4):
        live(round, fusing, clients, schedule)
    for n, client in clients.items():
        first, second = schedule.order(n)[:2]
        assert client.stream.learning.task == 2 and client.stream.tests.met() == [second, first]
        assert (client.stream.tests.place_of(first), client.stream.tests.place_of(second)) == (2, 1)
        measured = client.task_metrics(3)
        assert {key for key, value in measured.items() if "temporal" in key and not np.isnan(value)} == set()
        now = np.array([client.stream.tests.accuracies(task)[0] for task in (first, second)])
        assert not np.isnan(now[:, 0, 1]).any()


def test_a_client_is_evaluated_on_its_tasks_so_far_and_the_next(tables):
    tables["continual"]["tasks"] = {
        "kind": "split",
        "count": 5,
        "order": "overlapping",
        "tasks_per_client": 3,
    }
    fusing, clients, schedule = federation(tables)
    untrained = clients[0].task_metrics(0)
    order = schedule.order(0)
    assert measured_tasks(untrained) == set(order) and len(order) == 3
    live(1, fusing, clients, schedule)
    assert measured_tasks(clients[0].task_metrics(1)) == set(order[:2])


def measured_tasks(metrics: dict[str, float]) -> set[int]:
    found = {
        key: value for key, value in metrics.items() if key.startswith("accuracy_task_incremental/global")
    }
    return {int(key.rpartition("/")[2]) for key, value in found.items() if not np.isnan(value)}
