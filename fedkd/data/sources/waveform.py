"""Waveforms: three classes of short series, for any number of clients, without a file.

Breiman, Friedman, Olshen & Stone, "Classification and Regression Trees", 1984, section 2.6.2. The Bayes
rule has an accuracy of 0.86.
"""

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.kinds import SERIES
from fedkd.data.memory_budget import check_memory_budget
from fedkd.data.request import SourceRequest
from fedkd.errors import UserError
from fedkd.randomness import numpy_generator

LENGTH, CENTRES = 21, (11, 15, 7)
PAIRS = ((0, 1), (0, 2), (1, 2))
"""The base waves of each class."""
BOUNDS = {"samples": (2, 1e9), "clients": (1, 1e6), "test": (3, 1e9), "seed": (0, 2**63 - 1)}
"""Of the arguments, both included."""


def base_waves() -> np.ndarray:
    """Return the three triangles [3, 21]: max(6 − |i − centre|, 0) at i = 1 … 21."""
    return np.maximum(6.0 - np.abs(np.arange(1, LENGTH + 1) - np.array(CENTRES)[:, None]), 0.0)


def load(request: SourceRequest) -> Dataset:
    """Return series [n, 1, 21] float32 owned by the clients, in client order.

    A series of a class is u·g + (1 − u)·h + ε with its two base waves g and h, u ~ U(0, 1) and ε ~ N(0, 1) at
    each step. Client k scales its series by exp(d·N(0, 1)) and lifts them by 3 d·N(0, 1), with d = `drift`,
    as speakers or sensors differ. Test series have the scale 1 and the level 0.

    Arguments: `samples` of each client, `clients` (by default `data.clients`), `test` series, `drift`,
    `seed`. Client 7 has the same samples among 10 clients and among 10,000.
    """
    args = request.arguments(samples=100, clients=request.clients, test=1000, drift=0.0, seed=0)
    for name, (least, most) in BOUNDS.items():
        if not least <= args[name] <= most:
            raise UserError(f"must be ≥ {least:g} and ≤ {most:g}, got {args[name]}", key=f"data.args.{name}")
    if not 0.0 <= args["drift"] <= 10.0:
        raise UserError(f"must be ≥ 0 and ≤ 10, got {args['drift']}", key="data.args.drift")
    clients, samples, seed = args["clients"], args["samples"], args["seed"]
    total = clients * samples + args["test"]
    check_memory_budget(4 * total * LENGTH, f"{total:,} series take", "data.args")
    x, y = np.empty((clients * samples, 1, LENGTH), np.float32), np.empty(clients * samples, np.int64)
    for client in range(clients):
        own = slice(client * samples, (client + 1) * samples)
        draw = numpy_generator(seed, "waveform", client=client)
        scale, level = np.exp(args["drift"] * draw.standard_normal()), draw.standard_normal()
        series, y[own] = draw_series(samples, draw)
        x[own, 0] = scale * series + 3.0 * args["drift"] * level
    test_x, test_y = draw_series(args["test"], numpy_generator(seed, "waveform-test"))
    owners = np.repeat(np.arange(clients), samples)
    tests = test_x[:, None].astype(np.float32), test_y
    return Dataset(request.name, ("1", "2", "3"), x, y, *tests, owners, SERIES)


def draw_series(count: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return series [n, 21] float64 and their classes [n]."""
    y = draw.integers(0, len(PAIRS), count)
    share = draw.random((count, 1))
    first, second = base_waves()[np.array(PAIRS)[y].T]
    return share * first + (1.0 - share) * second + draw.standard_normal((count, LENGTH)), y
