"""The part of the common test set on which rounds before the last are evaluated."""

import numpy as np

from fedkd.data import Data, FederatedData, stratified_choice
from fedkd.fusion import FORWARDS_PER_TRAINING_STEP
from fedkd.plan import Plan, evaluated_clients
from fedkd.randomness import numpy_generator
from fedkd.scenario import Scenario

LARGEST_SHARE = 0.2
"""Largest share of evaluations in the compute of rounds of local training, for `evaluate = "auto"`."""

MOMENTS = 2  # evaluations of a client in a round: before fusion and after it
FEWEST_OF_CLASS = 20
SMALL = 500
"""Test sets up to this size are used whole: a part would be too small for its figures."""


def with_test_sample(plan: Plan, data: Data) -> Plan:
    """Return a plan whose `evaluate` is a number of samples or ``"full"``.

    `auto` becomes a number by sizes alone: the same for all strategies, which can then be compared in each
    round, and the same on every machine.
    """
    # Streams compare rounds with each other; asynchronous rounds repeat figures of clients that wait.
    if not isinstance(data, FederatedData) or plan.scenario.asynchronous is not None:
        return plan.with_test_sample("full")
    number, size = plan.scenario.evaluate, len(data.test_y)
    if number == "auto" and size > SMALL:
        number = min(max(affordable_size(plan, data), FEWEST_OF_CLASS * data.classes), size)
    return plan.with_test_sample(number if isinstance(number, int) and number < size else "full")


def affordable_size(plan: Plan, data: FederatedData) -> int:
    """Return the common test samples with which evaluations have `LARGEST_SHARE` of a round's compute.

    Passes of samples are counted. Of all clients, a share trains in a round; the evaluated ones predict their
    own test samples and the common ones.
    """
    scenario, clients = plan.scenario, data.num_clients
    train, own = (
        sum(stop - start for start, stop in bounds) / clients
        for bounds in (data.train_bounds, data.test_bounds)
    )
    training = (scenario.clients_per_round or clients) * train * scenario.training.local_epochs
    allowed = FORWARDS_PER_TRAINING_STEP * training * LARGEST_SHARE / (1.0 - LARGEST_SHARE)
    evaluations = MOMENTS * len(evaluated_clients(scenario)) / scenario.evaluate_every
    return max(int(allowed / evaluations - own), 0)


def sampled_size(scenario: Scenario, size: int) -> int:
    """Return the common test samples, of `size`, for rounds before the last."""
    return min(scenario.evaluate, size) if isinstance(scenario.evaluate, int) else size


def draw_test_sample(plan: Plan, data: Data) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the samples `[n, …]` and labels `[n]` of the part, with its class shares; None: all."""
    if not isinstance(data, FederatedData):
        return None
    number = sampled_size(plan.scenario, len(data.test_y))
    if number == len(data.test_y):
        return None
    generator = numpy_generator(plan.scenario.seed, "test-sample")
    rows = np.flatnonzero(stratified_choice(data.test_y, number, generator))
    return data.test_x[rows], data.test_y[rows]
