"""The start of Ray is retried with longer limits."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import ray
from ray._private import services

from fedkd.engine import compat
from fedkd.engine.ray import cluster as ray_cluster
from fedkd.errors import EngineLost
from fedkd.scenario.schema import Engine

LIMIT = "RAY_agent_register_timeout_ms"


@pytest.fixture
def starts(monkeypatch):
    """The starts of Ray that were tried: the limit on its agents, as each saw it; all of them fail."""
    seen: list[str | None] = []

    def init(**options):
        seen.append(os.environ.get(LIMIT))
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    return seen


def test_a_second_start_has_longer_limits_and_names_a_busy_machine(starts, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (4000.0, 1.0, 1.0))
    with pytest.raises(
        EngineLost, match=r"failed to start twice: .*timed out.*load 4000, .* likely cause; its logs"
    ):
        ray_cluster.connect_ray(Engine(kind="ray"))
    assert starts == [None, "180000"]
    assert LIMIT not in os.environ


def test_an_idle_machine_is_not_called_busy(starts, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    with pytest.raises(EngineLost) as failure:
        ray_cluster.connect_ray(Engine(kind="ray"))
    assert "likely cause" not in str(failure.value)


def test_a_start_waits_for_a_late_node(monkeypatch):
    answers = [RuntimeError("not yet"), RuntimeError("not yet"), {"NodeID": "a"}]

    def get_node(address, node):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr(compat, "_has_raylet", lambda: True)
    monkeypatch.setattr(compat.time, "sleep", lambda seconds: None)
    with compat.patient():
        assert services.get_node("address", "a") == {"NodeID": "a"}
    assert services.get_node is get_node


def test_a_start_does_not_wait_for_a_dead_raylet(monkeypatch):
    def get_node(address, node):
        raise RuntimeError("not yet")

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr(compat.time, "sleep", lambda seconds: pytest.fail("it waits"))
    monkeypatch.setattr(compat, "descendant_pids", lambda pid: [])
    with compat.patient(), pytest.raises(RuntimeError, match="not yet"):
        services.get_node("address", "a")


def test_a_shared_ray_that_fails_to_start_fails_one_test(request, monkeypatch):
    plugins = request.config.pluginmanager.get_plugins()
    [conftest] = [plugin for plugin in plugins if hasattr(plugin, "NoSharedRay")]
    monkeypatch.setattr(conftest.NoSharedRay, "told", False)

    def outcome() -> str:
        call = pytest.CallInfo.from_call(lambda: _raise(conftest.NoSharedRay("no")), "setup")
        report = SimpleNamespace(outcome="failed", longrepr="long")
        hook = conftest.pytest_runtest_makereport(request.node, call)
        next(hook)
        with pytest.raises(StopIteration):
            hook.send(report)
        return report.outcome

    assert [outcome(), outcome(), outcome()] == ["failed", "skipped", "skipped"]


def _raise(error: Exception) -> None:
    raise error
