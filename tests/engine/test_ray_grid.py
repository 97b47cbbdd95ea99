"""The Ray engine as a Flower grid, and its number of actors."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
import ray
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from ray.exceptions import RayActorError

import fedkd.engine.ray.grid as module
from fedkd.data.federated import load_federated_data
from fedkd.engine.clients import ScenarioWorkload, on_its_device
from fedkd.engine.grid import Blocks
from fedkd.engine.ray.actor import WorkNote
from fedkd.engine.ray.cluster import RayCluster
from fedkd.engine.ray.grid import RayGrid, start_spares
from fedkd.engine.ray.nodes import Node
from fedkd.engine.ray.placement import count_actors, gpu_share
from fedkd.engine.ray.process_watch import RayWatch
from fedkd.errors import EngineLost, UserError
from fedkd.federation.messages.arrays import arrays_to_record, record_to_arrays, values_of
from fedkd.federation.messages.records import (
    CLIENT_DIED,
    CLIENT_RAISED,
    EXPORT_STATE,
    IMPORT_STATE,
    NOT_HANDLED,
    STATE,
    TIMED_OUT,
)
from fedkd.plan.load import parse_plan
from fedkd.scenario.schema import Engine

pytestmark = pytest.mark.usefixtures("ray_session")

# Probes are sent as they are: by name each actor would import this module, and all of fedkd with it.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Probe:
    """A workload whose clients report where they run and what they were sent."""

    def __init__(self, big: np.ndarray, failure: str = "") -> None:
        self.big = big
        if failure:
            raise UserError("is wrong", key=failure)

    def context(self, client: int) -> Context:
        return Context(1, client + 2, {"client": client}, RecordDict(), {})

    def together(self, requests) -> list[Message | Exception]:
        outcomes: list[Message | Exception] = []
        for message, context in requests:
            try:
                outcomes.append(self.app(message, context))
                outcomes[-1].content["together"] = ConfigRecord({"with": len(requests)})
            except ArithmeticError as error:
                outcomes.append(error)
        return outcomes

    def app(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["client"])
        if message.metadata.message_type == EXPORT_STATE:
            seen = np.array(context.state.config_records["seen"]["n"])
            return Message(RecordDict({STATE: arrays_to_record({"seen": seen})}), reply_to=message)
        if message.metadata.message_type == IMPORT_STATE:
            seen = record_to_arrays(message.content.array_records[STATE])["seen"]
            context.state["seen"] = ConfigRecord({"n": int(seen)})
            return Message(RecordDict(), reply_to=message)
        ask = message.content.config_records["ask"]
        time.sleep(float(ask.get("sleep", 0.0)) * (3 - client % 4))
        if ask.get("hangs", -1) == client:
            context.state["seen"] = ConfigRecord({"n": 1000})
            time.sleep(10**6)
        if ask.get("raises", -1) == client:
            context.state["seen"] = ConfigRecord({"n": 1000})
            raise ArithmeticError(f"client {client} cannot count")
        if ask.get("dies", -1) == client:
            os._exit(3)
        arrays = {
            name: record_to_arrays(record)["x"]
            for name, record in sorted(message.content.array_records.items())
        }
        context.state["seen"] = ConfigRecord({"n": int(context.state.get("seen", {}).get("n", 0)) + 1})
        told = ConfigRecord(
            {
                "client": client,
                "process": os.getpid(),
                "seen": int(context.state.config_records["seen"]["n"]),
                "sums": [float(array.sum()) for array in arrays.values()],
                "names": list(arrays),
                "writable": [array.flags.writeable for array in arrays.values()] + [self.big.flags.writeable],
                "gpus": [int(gpu) for gpu in ray.get_gpu_ids()],
                "visible": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            }
        )
        content = RecordDict({"told": told, "big": arrays_to_record({"x": np.full(50_000, client)})})
        return Message(content, reply_to=message)


def make_grid(clients: int = 5, actors: int = 2, **options) -> RayGrid:
    options = {"cpus_per_actor": 0.5} | options
    grid = RayGrid(Probe, (np.zeros(200_000),), [1.0] * clients, actors=actors, **options)
    grid.wait_until_ready()
    return grid


@pytest.fixture(scope="module")
def grid(ray_session) -> Iterator[RayGrid]:
    grid = make_grid()
    yield grid
    grid.close()


def messages(grid: RayGrid, records=None, clients=None, **ask) -> list[Message]:
    """Return one message per client; `records` is called with the client for its array records."""
    return [
        grid.create_message(
            RecordDict({"ask": ConfigRecord(ask), **(records(client) if records else {})}), "train", node, "1"
        )
        for client, node in enumerate(grid.get_node_ids())
        if clients is None or client in clients
    ]


def told(replies) -> list[ConfigRecord]:
    return [reply.content.config_records["told"] for reply in replies]


def test_replies_come_in_client_order_for_every_finishing_order(grid):
    replies = list(grid.send_and_receive(reversed(messages(grid, sleep=0.05))))
    assert [record["client"] for record in told(replies)] == [0, 1, 2, 3, 4]
    for client, reply in enumerate(replies):
        assert reply.metadata.src_node_id == client + 2
        assert np.array_equal(values_of(reply.content.array_records["big"]["x"]), np.full(50_000, client))


def test_every_reply_is_counted_on_arrival(grid):
    seen: list[tuple[int, int]] = []
    grid.on_reply = lambda done, total: seen.append((done, total))
    list(grid.send_and_receive(messages(grid)))
    grid.on_reply = None
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_clients_stay_with_their_actor(grid):
    rounds = [told(grid.send_and_receive(messages(grid))) for _ in range(3)]
    processes = [[record["process"] for record in records] for records in rounds]
    assert processes[0] == processes[1] == processes[2]
    assert len(set(processes[0])) == 2
    assert os.getpid() not in processes[0]
    first, second, third = ([record["seen"] for record in records] for records in rounds)
    assert [n + 1 for n in first] == second == [n - 1 for n in third], "so do their contexts"


def test_a_shared_record_is_stored_once_as_read_only(grid, monkeypatch):
    stored = []
    put = ray.put
    monkeypatch.setattr(module.ray, "put", lambda value: stored.append(value) or put(value))
    shared = arrays_to_record({"x": np.arange(100_000, dtype=np.float64)})
    sent = messages(
        grid, lambda client: {"shared": shared, "own": arrays_to_record({"x": np.full(1000, float(client))})}
    )
    records = told(grid.send_and_receive(sent))
    assert stored == [shared]
    for client, record in enumerate(records):
        assert record["names"] == ["own", "shared"]
        assert record["sums"] == [1000.0 * client, 99_999 * 100_000 / 2]
        assert record["writable"] == [False, False, False]
    assert all("shared" in message.content for message in sent), "the sender's messages stay whole"


def test_personal_records_are_not_shared(grid, monkeypatch):
    monkeypatch.setattr(module.ray, "put", lambda value: pytest.fail("nothing is shared"))
    sent = messages(grid, lambda client: {"own": arrays_to_record({"x": np.full(10, float(client))})})
    assert [r["sums"] for r in told(grid.send_and_receive(sent))] == [[0.0], [10.0], [20.0], [30.0], [40.0]]


def test_a_failing_client_leaves_the_others_running(grid):
    replies = list(grid.send_and_receive(messages(grid, raises=2)))
    assert [reply.has_error() for reply in replies] == [False, False, True, False, False]
    assert replies[2].error.code == CLIENT_RAISED
    assert replies[2].error.reason.startswith("ArithmeticError: client 2 cannot count\nTraceback")


def test_pushed_messages_are_pulled_once(grid):
    keys = list(grid.push_messages(messages(grid)))
    assert [record["client"] for record in told(grid.pull_messages(keys[3:1:-1]))] == [3, 2]
    assert [record["client"] for record in told(grid.pull_messages(keys))] == [0, 1, 4]
    assert not grid._replies


@pytest.fixture(scope="module")
def four(ray_session) -> Iterator[tuple[RayGrid, list[ConfigRecord]]]:
    """Four actors with half a GPU each and what their clients told once; three of them die in the tests.

    Actor 0 owns the clients 0, 4 and 8, in this order, actor 1 owns 1, 5 and 9, and so on.
    """
    grid = make_grid(clients=12, actors=4, cpus_per_actor=0.1, gpus_per_actor=0.5)
    yield grid, told(grid.send_and_receive(messages(grid)))
    grid.close()


def fates(replies) -> list[int | None]:
    return [reply.error.code if reply.has_error() else None for reply in replies]


def losing_the_reply_of(grid: RayGrid, client: int, monkeypatch) -> None:
    """Let a client's reply die with its actor, as it does when the actor dies before it has sent it."""
    get = ray.get

    def get_or_lose(reference):
        replies = get(reference)
        if isinstance(replies, list) and replies[0].metadata.src_node_id == client + 2:
            get(grid._actors[grid._owner[client]].__ray_ready__.remote())  # raises once the actor is dead
        return replies

    monkeypatch.setattr(module.ray, "get", get_or_lose)


def test_a_dead_actor_loses_only_its_own_clients(four):
    grid, before = four
    assert [n for n, record in enumerate(before) if record["process"] == before[4]["process"]] == [0, 4, 8]
    with_a_neighbour = (0, 3, 4, 7, 8)
    replies = list(grid.send_and_receive(messages(grid, clients=with_a_neighbour, dies=4)))
    # Client 0 was served before, if its reply did not die with the actor; 8 was lost with it.
    assert fates(replies)[0] in (None, NOT_HANDLED)
    assert fates(replies)[1:] == [None, CLIENT_DIED, None, NOT_HANDLED]
    assert replies[2].error.reason.startswith("its Ray actor died: ")
    assert "\n" not in replies[2].error.reason
    assert replies[4].error.reason == "its Ray actor died while it worked for client 4"
    again = grid.send_and_receive(messages(grid, clients=with_a_neighbour))
    assert [reply.has_error() for reply in again] == [True, False, True, False, True]


def test_a_lost_reply_does_not_blame_its_client(four, monkeypatch):
    grid, _ = four
    losing_the_reply_of(grid, 1, monkeypatch)
    replies = list(grid.send_and_receive(messages(grid, clients=(1, 3, 5, 9), dies=5)))
    assert fates(replies) == [NOT_HANDLED, None, CLIENT_DIED, NOT_HANDLED]
    assert replies[0].error.reason == "its Ray actor died while it worked for client 5"


def test_an_unreadable_note_of_an_actor_names_all_its_clients(four, monkeypatch, tmp_path):
    grid, _ = four
    elsewhere = [str(tmp_path / str(actor)) for actor in range(4)]  # as with an actor on another node
    monkeypatch.setattr(grid._notes, "paths", elsewhere)
    losing_the_reply_of(grid, 2, monkeypatch)
    replies = list(grid.send_and_receive(messages(grid, clients=(2, 3, 6, 10), dies=6)))
    assert fates(replies) == [CLIENT_DIED, None, NOT_HANDLED, NOT_HANDLED]
    told = "its Ray actor died while it worked for this client or client 6 or 10: "
    assert replies[0].error.reason.startswith(told)
    assert replies[2].error.reason == "its Ray actor died while it worked for client 2, 6 or 10"


def seen_by(replies) -> list[int]:
    return [int(record["seen"]) for record in told(reply for reply in replies if not reply.has_error())]


@pytest.mark.parametrize(
    ("way", "code", "notes"),
    [("raises", CLIENT_RAISED, True), ("dies", CLIENT_DIED, True), ("hangs", TIMED_OUT, False)],
)
def test_a_failed_client_is_restored_and_others_are_unaffected(ray_session, way, code, notes):
    timeout = 3.0 if way == "hangs" else None
    grid = make_grid(clients=4, actors=1, cpus_per_actor=0.1, keeps_states=True, timeout=timeout)
    if not notes:  # as with an actor on another node
        grid._notes.read = lambda actor: None
    try:
        assert seen_by(grid.send_and_receive(messages(grid))) == [1, 1, 1, 1]
        first = list(grid.send_and_receive(messages(grid, **{way: 0})))
        assert fates(first) == [code, None, None, None] and seen_by(first) == [2, 2, 2]
        assert seen_by(grid.send_and_receive(messages(grid))) == [2, 3, 3, 3]
    finally:
        grid.close()


def test_a_late_client_is_named(ray_session):
    grid = make_grid(clients=3, actors=1, cpus_per_actor=0.1, timeout=3.0)
    replies = list(grid.send_and_receive(messages(grid, hangs=1)))
    assert fates(replies) == [None, TIMED_OUT, NOT_HANDLED]
    assert replies[1].error.reason == "gave no answer within 3 s (faults.timeout)"
    assert replies[2].error.reason == "its Ray actor was stopped while it worked for client 1"
    grid.close()


def test_an_actor_works_without_the_disk_of_the_driver(tmp_path):
    WorkNote(str(tmp_path / "elsewhere" / "0")).begin("a" * 32)
    assert not list(tmp_path.iterdir())


def test_early_actors_are_used_first_and_always_stopped(ray_session):
    spares = start_spares(2, "fedkd.engine.ray.actor", 0.1, 0.0)
    grid = RayGrid(
        Probe, (np.zeros(3),), [1.0] * 2, actors=1, cpus_per_actor=0.1, gpus_per_actor=0.0, spares=spares
    )
    try:
        grid.wait_until_ready()
        assert [reply.has_error() for reply in grid.send_and_receive(messages(grid))] == [False, False]
        assert grid._actors[0] in spares
    finally:
        grid.close()
    for spare in spares:
        with pytest.raises(RayActorError):
            ray.get(spare.__ray_ready__.remote(), timeout=60)


def test_an_error_while_an_actor_starts_keeps_its_key():
    grid = RayGrid(Probe, (np.zeros(3), "engine.device"), [1.0], actors=1, cpus_per_actor=0.1)
    try:
        with pytest.raises(UserError, match="is wrong") as caught:
            grid.wait_until_ready()
        assert (type(caught.value), caught.value.key) == (UserError, "engine.device")
    finally:
        grid.close()


def test_actors_hold_their_share_of_a_gpu(four):
    _, records = four
    assert sorted(gpu for record in records[:4] for gpu in record["gpus"]) == [0, 0, 1, 1]
    assert all(record["visible"] == str(record["gpus"][0]) for record in records)


@pytest.mark.parametrize(
    ("named", "share", "device"),
    [("auto", 0.0, "cpu"), ("auto", 0.5, "cuda"), ("cuda", 0.0, "cuda"), ("cpu", 1.0, "cpu")],
)
def test_the_device_of_an_actors_clients(named, share, device, digits_scenario, monkeypatch):
    plan = parse_plan(digits_scenario | {"engine": {"kind": "ray", "device": named}})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    placed = on_its_device(plan, share).scenario
    workload = ScenarioWorkload(placed.model_dump_json(), load_federated_data(plan.scenario))
    assert workload._clients._device.type == device


def cluster_of(*nodes: tuple[float, float]) -> RayCluster:
    return RayCluster(tuple(Node(*node) for node in nodes), owned=False)


@pytest.mark.parametrize(
    ("engine", "cluster", "clients", "actors"),
    [
        ({}, (4, 0), 10, 4),
        ({}, (4, 0), 3, 3),
        ({"actors": 2}, (4, 0), 10, 2),
        ({"actors": 4}, (4, 0), 2, 2),
        ({"cpus_per_actor": 0.5}, (2, 0), 10, 4),
        ({"cpus_per_actor": 0.1}, (0.3, 0), 10, 3),
        ({"cpus_per_actor": 2}, (5, 0), 10, 2),
        ({}, (8, 2), 10, 8),  # shared out: four actors on each GPU
        ({}, (2, 4), 10, 2),
        ({"device": "cpu"}, (8, 2), 10, 8),
        ({"gpus_per_actor": 1}, (8, 2), 10, 2),
        ({"gpus_per_actor": 0.5}, (8, 2), 10, 4),
        ({"gpus_per_actor": 0.1}, (64, 1), 64, 10),
        ({"gpus_per_actor": 0.6}, (8, 2), 10, 2),  # not three: no share spans two GPUs
        ({"gpus_per_actor": 2}, (8, 5), 10, 2),
        ({"gpus_per_actor": 0.25}, (3, 1), 10, 3),
    ],
)
def test_the_number_of_actors_fits_the_resources(engine, cluster, clients, actors):
    assert count_actors(Engine(**engine), cluster_of(cluster), clients) == actors


@pytest.mark.parametrize(
    ("engine", "nodes", "actors"),
    [
        ({"cpus_per_actor": 2}, [(3, 0), (3, 0), (3, 0)], 3),  # not four: no actor lies on two nodes
        ({"cpus_per_actor": 4}, [(5, 0)] * 4, 4),  # of 20 CPUs in all
        ({"gpus_per_actor": 0.6}, [(8, 1), (8, 1)], 2),
        ({"gpus_per_actor": 1}, [(8, 0), (2, 4)], 2),  # the CPUs are elsewhere
        ({}, [(8, 0), (4, 1)], 4),  # a share of a GPU for each: on its node alone
        ({}, [(8, 1), (2, 1)], 10),
    ],
)
def test_the_number_of_actors_fits_each_node(engine, nodes, actors):
    assert count_actors(Engine(**engine), cluster_of(*nodes), 30) == actors


def test_resources_of_two_nodes_are_not_added_for_one_actor():
    with pytest.raises(UserError, match="no node of the Ray cluster has both 4 CPUs and 2 GPUs"):
        count_actors(Engine(cpus_per_actor=4, gpus_per_actor=2), cluster_of((8, 1), (2, 2)), 10)
    with pytest.raises(UserError, match="the largest node of the Ray cluster has 8"):
        count_actors(Engine(cpus_per_actor=9), cluster_of((8, 0), (8, 0)), 10)
    with pytest.raises(UserError, match=r"16 CPUs, 0 GPUs on 2 nodes\) fits 4"):
        count_actors(Engine(cpus_per_actor=3, actors=5), cluster_of((8, 0), (8, 0)), 10)


def test_waiting_for_room_for_actors_is_limited():
    grid = RayGrid(
        Probe, (np.zeros(3),), [1.0] * 3, actors=3, cpus_per_actor=9.0
    )  # as on a node that is busy
    try:
        with pytest.raises(
            EngineLost, match=r"^3 of 3 Ray actors did not come up within 0.5 s .*start_timeout"
        ):
            grid.wait_until_ready(0.5)
    finally:
        grid.close()


def test_an_actor_that_dies_at_start_is_reported():
    grid = RayGrid(Dying, (), [1.0], actors=1, cpus_per_actor=0.1)
    with pytest.raises(EngineLost, match=r"^a Ray actor died while it started: "):
        grid.wait_until_ready()
    grid.close()


class Dying:
    """A workload that takes its process with it."""

    def __init__(self) -> None:
        os._exit(4)


class Lost(RayWatch):
    """A watch that has seen the worst."""

    def check(self) -> None:
        self.lost = True
        raise EngineLost("Ray's raylet was killed by SIGKILL")


def test_a_grid_without_ray_makes_no_more_ray_calls(monkeypatch):
    grid = make_grid(clients=2, actors=1, cpus_per_actor=0.1)
    actors = list(grid._actors)
    grid._watch = Lost()
    shared = arrays_to_record({"x": np.ones(9)})
    with monkeypatch.context() as patched:
        for name in ("put", "get", "wait", "kill"):
            patched.setattr(module.ray, name, lambda *_, **__: pytest.fail("Ray may end this process"))
        with pytest.raises(EngineLost):
            list(grid.send_and_receive(messages(grid, lambda client: {"shared": shared})))
        with pytest.raises(EngineLost):
            list(grid.send_and_receive(messages(grid)))
        grid.close()
    for actor in actors:
        ray.kill(actor)


def test_errors_of_ray_sockets_are_not_file_errors_of_the_run(grid, monkeypatch):
    shared = arrays_to_record({"x": np.ones(9)})

    def broken(value):
        raise BrokenPipeError("the store")

    with monkeypatch.context() as patched:
        patched.setattr(module.ray, "put", broken)
        with pytest.raises(EngineLost, match=r"^Ray failed: the store"):
            list(grid.send_and_receive(messages(grid, lambda client: {"shared": shared})))


@pytest.mark.parametrize(
    ("engine", "cluster", "key"),
    [
        ({"cpus_per_actor": 3}, (2, 0), "engine.cpus_per_actor"),
        ({"gpus_per_actor": 0.5}, (2, 0), "engine.gpus_per_actor"),
        ({"gpus_per_actor": 2}, (2, 1), "engine.gpus_per_actor"),
        ({"gpus_per_actor": 1.5}, (8, 4), "engine.gpus_per_actor"),
        ({"actors": 3}, (2, 0), "engine.actors"),
        ({"actors": 3, "gpus_per_actor": 0.5}, (8, 1), "engine.actors"),
    ],
)
def test_oversized_requests_are_refused_with_their_key(engine, cluster, key):
    with pytest.raises(UserError) as caught:
        count_actors(Engine(**engine), cluster_of(cluster), 10)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("engine", "resources", "clients", "share"),
    [
        ({}, (8, 0), 10, 0.0),
        ({}, (8, 2), 10, 0.25),
        ({}, (2, 4), 10, 1.0),
        ({}, (8, 2), 2, 1.0),
        ({}, (9, 2), 10, 0.2),
        ({"actors": 2}, (8, 1), 10, 0.5),
        ({"device": "cpu"}, (8, 2), 10, 0.0),
        ({"gpus_per_actor": 0}, (8, 2), 10, 0.0),
        ({"gpus_per_actor": 0.3}, (8, 2), 10, 0.3),
    ],
)
def test_gpus_are_divided_unless_the_scenario_sets_shares(engine, resources, clients, share):
    assert gpu_share(Engine(**engine), cluster_of(resources), clients) == share


def test_an_actor_receives_several_messages_at_once():
    shared = arrays_to_record({"x": np.ones(50_000)})
    blocks = Blocks([[0, 1], [3], [2, 4]])
    grid = make_grid(clients=5, actors=2, blocks=blocks, cpus_per_actor=0.0)  # whoever else is there
    try:
        messages = [
            Message(RecordDict({"ask": ConfigRecord({"raises": 3}), "shared": shared}), node, "train")
            for node in grid.get_node_ids()
        ]
        seen = []
        grid.on_reply = lambda done, total: seen.append((done, total))
        replies = list(grid.send_and_receive(messages))
    finally:
        grid.close()
    assert [reply.metadata.src_node_id for reply in replies] == list(grid.get_node_ids())
    assert seen == [(done, 5) for done in range(1, 6)]
    failed = [reply for reply in replies if reply.has_error()]
    assert len(failed) == 1 and failed[0].error.reason.startswith("ArithmeticError: client 3 cannot count\n")
    others = [reply.content.config_records for reply in replies if not reply.has_error()]
    assert [told["told"]["sums"] for told in others] == [[50_000.0]] * 4
    assert [told["together"]["with"] for told in others] == [2, 2, 2, 2], "the one alone is it that raised"
    processes = [told["told"]["process"] for told in others]
    assert processes[0] == processes[1] and processes[2] == processes[3]
