"""The part of the common test set on which rounds before the last are evaluated."""

import numpy as np

from fedkd.data import Data, FederatedData, stratified_choice
from fedkd.plan import Plan
from fedkd.randomness import numpy_generator


def draw_test_sample(plan: Plan, data: Data) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the samples `[n, …]` and labels `[n]` of the part, with its class shares; None: all."""
    number = plan.scenario.evaluate
    if not isinstance(number, int) or not isinstance(data, FederatedData) or number >= len(data.test_y):
        return None
    generator = numpy_generator(plan.scenario.seed, "test-sample")
    rows = np.flatnonzero(stratified_choice(data.test_y, number, generator))
    return data.test_x[rows], data.test_y[rows]
