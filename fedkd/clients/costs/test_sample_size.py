"""The number of common test samples for rounds before the last."""

from collections.abc import Sequence

from torch import nn

from fedkd.clients.costs.arithmetic import estimate_workload
from fedkd.data import Data, FederatedData
from fedkd.models import Estimator
from fedkd.plan import Plan

LARGEST_SHARE = 0.2
"""Largest share of evaluations in a round's compute, for `evaluate = "auto"`."""

FEWEST_OF_CLASS = 20
SMALL = 500
"""Test sets up to this size are used whole: a part would be too small for its figures."""


def with_test_sample(plan: Plan, data: Data, models: Sequence[nn.Module | Estimator]) -> Plan:
    """Return a plan whose `evaluate` is a number of samples or ``"full"``; from sizes, never from clocks."""
    # Streams compare rounds with each other; asynchronous rounds repeat figures of clients that wait.
    if not isinstance(data, FederatedData) or plan.scenario.asynchronous is not None:
        return plan.with_test_sample("full")
    number, size = plan.scenario.evaluate, len(data.test_y)
    if number == "auto" and size > SMALL:
        affordable = estimate_workload(plan, data, models).affordable_test(LARGEST_SHARE)
        number = int(min(max(affordable, FEWEST_OF_CLASS * data.classes), size))
    return plan.with_test_sample(number if isinstance(number, int) and number < size else "full")
