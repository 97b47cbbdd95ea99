"""Which clients are poisoned, derived from the seed: every process that asks gets the same answer."""

from fedkd.randomness import numpy_generator
from fedkd.scenario.schema import Scenario


def poisoned_clients(scenario: Scenario) -> frozenset[int]:
    """Return the clients that are poisoned: a share of all, rounded to the nearest, drawn once."""
    clients = scenario.data.clients
    number = round_half_up(scenario.faults.poisoned * clients)
    if number == 0:
        return frozenset()
    drawn = numpy_generator(scenario.seed, "poisoned").choice(clients, number, replace=False)
    return frozenset(int(client) for client in drawn)


def victim_of(scenario: Scenario, client: int) -> int:
    """Return the honest client whose class distribution a poisoned one feigns; itself if all are poisoned."""
    poisoned = poisoned_clients(scenario)
    honest = [other for other in range(scenario.data.clients) if other not in poisoned] or [client]
    return int(numpy_generator(scenario.seed, "victim", client=client).choice(honest))


def round_half_up(value: float) -> int:
    """Return the nearest integer, .5 upwards."""
    return int(value + 0.5)
