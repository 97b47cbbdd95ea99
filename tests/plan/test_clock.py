"""Simulated time: what is drawn of jobs and networks."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.plan.clock import VirtualClock
from fedkd.scenario.sections import Clock


def test_client_factors_are_log_normal_and_job_factors_half_normal():
    clock = VirtualClock(3, Clock(seconds=2.0, spread=0.7))
    steady = VirtualClock(3, Clock(seconds=2.0, spread=0.7, work="steady"))
    factors = np.log([steady.work(client, 1, 0) / 2.0 for client in range(2000)])
    assert factors.mean() == pytest.approx(0.0, abs=0.05) and factors.std() == pytest.approx(0.7, rel=0.05)
    jobs = np.array([clock.work(5, job, 0) for job in range(1, 2001)]) / steady.work(5, 1, 0)
    assert jobs.mean() == pytest.approx(np.sqrt(2 / np.pi), rel=0.05)  # of |N(0, 1)|
    assert (jobs > 0).all() and len(set(jobs)) == 2000
    assert clock.work(5, 7, 0) == clock.work(5, 7, 99)


def test_steps_and_bytes_take_simulated_time():
    clock = VirtualClock(0, Clock(work="steps", seconds=0.25, spread=0.0, bandwidth=4.0, latency=0.5))
    assert clock.work(1, 1, 12) == 3.0
    assert clock.way(1, 1_000_000) == pytest.approx(0.5 + 2.0)
    assert VirtualClock(0, Clock(latency=0.5)).way(1, 10**12) == 0.5


def test_network_and_compute_speeds_are_independent():
    clock = VirtualClock(1, Clock(work="steady", bandwidth=8.0, bandwidth_spread=1.0))
    ways = np.log([clock.way(client, 1_000_000) for client in range(1000)])
    speeds = np.log([clock.work(client, 1, 0) for client in range(1000)])
    assert ways.std() == pytest.approx(1.0, rel=0.1)
    assert abs(np.corrcoef(ways, speeds)[0, 1]) < 0.1
