"""Jobs under way: the order of events, how old an upload is in the mean, and who comes next."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fedkd.server.clients_at_work import ClientJob, JobsInFlight


def depart(flights: JobsInFlight, round: int, now: float, lasts) -> list[int]:
    clients = flights.departing()
    for client in clients:
        flights.depart(ClientJob(client, round, flights.key(client, round), now, 0.0, 0, 0))
        flights.done(client, 0.0, now + lasts(client))
    return clients


def ages(clients: int, buffer: int, versions: int, lasts, concurrency: int | None = None) -> list[int]:
    """Return how old every upload is, where who has uploaded begins again at once."""
    flights, now, found = JobsInFlight(clients, concurrency or clients, 0), 0.0, []
    for version in range(1, versions + 1):
        depart(flights, version, now, lasts)
        for place in range(buffer):
            job = flights.first()
            assert job is not None and job.over >= now
            flights.land(job.client, hold=False)
            now = job.over
            found.append(version - job.began)
            if place < buffer - 1:
                depart(flights, version, now, lasts)
    return found


@pytest.mark.parametrize(("buffer", "mean"), [(1, 9.0), (3, 3.0), (5, 1.8)])
@pytest.mark.parametrize("law", ["half normal", "exponential", "uniform"])
def test_the_mean_staleness_is_n_minus_1_over_k(buffer, mean, law):
    """(N − 1)/K, whatever the law of durations: of the clients, and of the jobs."""
    draws, speed = np.random.default_rng(1), np.exp(np.random.default_rng(2).normal(size=10))
    lasts = {
        "half normal": lambda client: speed[client] * abs(draws.normal()),
        "exponential": lambda client: draws.exponential(),
        "uniform": lambda client: draws.uniform(0.5, 1.5),
    }[law]
    assert np.mean(ages(10, buffer, 2000, lasts)) == pytest.approx(mean, rel=0.02)


def test_simultaneous_events_are_ordered_by_client():
    flights = JobsInFlight(4, 4, 0)
    depart(flights, 1, 0.0, lambda client: 1.0)
    order = []
    while flights.jobs:
        job = flights.first()
        flights.land(job.client, hold=True)
        order.append(job.client)
    assert order == [0, 1, 2, 3]
    assert flights.departing() == []  # they wait to be answered
    flights.release()
    assert flights.departing() == [0, 1, 2, 3]


@pytest.mark.parametrize(("least", "known"), [(2.0, False), (2.5, True)])
def test_an_event_waits_until_all_end_times_are_known(least, known):
    """A job that cannot be over before 2 might be over at 2, like the one that is known to be."""
    flights = JobsInFlight(2, 2, 0)
    for client in flights.departing():
        flights.depart(ClientJob(client, 1, 1, 0.0, least, 0, 0))
    assert flights.first() is None
    flights.done(1, 1.0, 2.0)
    assert (flights.first() is not None) == known


def test_jobs_of_a_client_use_different_random_draws():
    flights, keys = JobsInFlight(2, 2, 0), []
    for began, round in enumerate([1, 1, 1, 2, 7]):
        depart(flights, round, float(began), lambda client: 0.5)
        keys.append(flights.jobs[0].key)
        for client in (0, 1):
            flights.land(client, hold=False)
    assert keys == [1, 2, 3, 4, 7]


def test_idle_clients_are_drawn_uniformly_and_repeatably():
    def drawn() -> Counter[int]:
        flights, counts = JobsInFlight(6, 2, 3), Counter()
        for round in range(1, 601):
            counts.update(depart(flights, round, float(round), lambda client: 1.0))
            job = flights.first()
            flights.land(job.client, hold=False)
        return counts

    counts = drawn()
    assert sum(counts.values()) == 601 and min(counts.values()) > 60
    assert drawn() == counts


def test_jobs_in_flight_continue_after_a_restore():
    flights = JobsInFlight(5, 3, 1)
    depart(flights, 1, 0.0, lambda client: 1.0 + client)
    flights.land(flights.first().client, hold=False)
    for client in flights.departing():
        flights.depart(ClientJob(client, 2, flights.key(client, 2), 1.5, 0.5, 64, 3))
    again = JobsInFlight(5, 3, 1)
    again.restore(flights.state())
    assert again.jobs.keys() == flights.jobs.keys() and again.first() == flights.first() is None
    for one in (flights, again):
        for client, job in list(one.jobs.items()):
            if not job.is_done:
                one.done(client, 0.6, 9.0)
    assert again.jobs == flights.jobs
    assert again.departing() == flights.departing() == []
    job = flights.first()
    assert again.first() == job
    for one in (flights, again):
        one.land(job.client, hold=False)
    assert again.departing() == flights.departing()
