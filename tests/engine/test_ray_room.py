"""The number of actors on nodes with other work."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

import fedkd.engine.ray.placement as module
from fedkd.engine.ray.cluster import RayCluster
from fedkd.engine.ray.nodes import Node
from fedkd.engine.ray.placement import room_for_actors
from fedkd.errors import EngineLost, UserError
from fedkd.scenario.schema import Engine

HEAD, BOX = Node(64, 0, "10.0.0.1", "head"), Node(8, 1, "10.0.0.2", "box")


@pytest.fixture
def free(monkeypatch):
    """Return a function that has nodes be free as told, one answer after the other; time flies."""

    def free(*answers: dict[str, tuple[float, float]]) -> None:
        told, clock = list(answers), [0.0]

        def free_nodes(nodes):
            answer = told.pop(0) if len(told) > 1 else told[0]
            return tuple(replace(n, cpus=answer[n.id][0], gpus=answer[n.id][1]) for n in nodes)

        monkeypatch.setattr(module, "free_nodes", free_nodes)
        monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
        monkeypatch.setattr(module.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))

    return free


def cluster(*nodes: Node) -> RayCluster:
    return RayCluster(nodes, owned=True)


IDLE = {"head": (64.0, 0.0), "box": (8.0, 1.0)}


@pytest.mark.parametrize(
    ("engine", "actors"),
    [
        ({}, 8),  # a share of the GPU for each: the CPUs of the head have none beside them
        ({"gpus_per_actor": 0.5}, 2),
        ({"device": "cpu"}, 72),
        ({"device": "cpu", "cpus_per_actor": 5}, 13),  # not 14, of 72 CPUs in all
        ({"actors": 3}, 3),
    ],
)
def test_actors_are_counted_for_nodes_of_different_size(engine, actors, free):
    free(IDLE)
    assert room_for_actors(Engine(**engine), cluster(HEAD, BOX), 100) == actors


def test_a_local_ray_is_not_queried_for_free_resources(monkeypatch):
    monkeypatch.setattr(module, "free_nodes", lambda nodes: pytest.fail("nobody else works there"))
    own = RayCluster((HEAD,), owned=True, seclusion=lambda: None)
    assert room_for_actors(Engine(), own, 100) == 64


def test_busy_nodes_get_fewer_actors(free):
    told: list[str] = []
    free({"head": (10.0, 0.0), "box": (3.0, 0.0)})
    assert room_for_actors(Engine(device="cpu"), cluster(HEAD, BOX), 100, told.append) == 13
    assert told == ["the Ray cluster is in use: it has room for 13 of 72 actors"]


def test_a_run_waits_for_stopping_actors(free):
    told: list[str] = []
    free({"head": (10.0, 0.0), "box": (3.0, 0.0)}, IDLE)
    assert room_for_actors(Engine(device="cpu"), cluster(HEAD, BOX), 100, told.append) == 72
    assert not told


def test_a_run_waits_for_room_and_then_reports_its_lack(free):
    told: list[str] = []
    free({"head": (0.0, 0.0), "box": (8.0, 0.0)})
    with pytest.raises(EngineLost) as caught:
        room_for_actors(Engine(gpus_per_actor=1), cluster(HEAD, BOX), 100, told.append)
    assert str(caught.value) == (
        "the Ray cluster had room for 0 of 1 actors after 120 s (engine.start_timeout): 8 of its 72 CPUs"
        " and 0 of its 1 GPUs are free"
    )
    assert told == ["waiting for room on the Ray cluster: 0 of 1 actors fit now"]


def test_a_run_waits_for_the_requested_number_of_actors(free):
    busy = {"head": (2.0, 0.0), "box": (0.0, 0.0)}
    free(*[busy] * 50, IDLE)
    assert room_for_actors(Engine(device="cpu", actors=3), cluster(HEAD, BOX), 100) == 3
    with pytest.raises(UserError, match="fits 72"):
        room_for_actors(Engine(device="cpu", actors=73), cluster(HEAD, BOX), 100)


def test_free_resources_are_queried_from_ray(ray_session):
    import ray

    from fedkd.engine.ray.nodes import alive_nodes, free_nodes

    [node] = alive_nodes()
    assert (node.cpus, node.gpus) == (2, 2) and node.name and node.id
    held = ray.remote(num_cpus=0.5, num_gpus=1)(Held).remote()
    try:
        ray.get(held.here.remote())
        deadline = time.monotonic() + 60  # what is known of a node is some moments old
        while free_nodes([node])[0].gpus > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        [free] = free_nodes([node])
        assert free.cpus <= node.cpus - 0.5 and free.gpus <= node.gpus - 1
    finally:
        ray.kill(held)


class Held:
    def here(self) -> None:
        """Answer once it is up."""
