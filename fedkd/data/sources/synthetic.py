"""Synthetic(α, β): samples for any number of clients, without a file.

Li, Sahu, Zaheer, Sanjabi, Talwalkar & Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020,
arXiv:1812.06127, after Shamir, Srebro & Zhang (ICML 2014).
"""

from typing import Any

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.memory_budget import check_memory_budget
from fedkd.data.request import SourceRequest
from fedkd.errors import UserError
from fedkd.randomness import numpy_generator

DECAY = -1.2  # the j-th feature has the variance j^-1.2
BOUNDS: dict[str, tuple[float, float]] = {
    "alpha": (0, 1e6),
    "beta": (0, 1e6),
    "features": (1, 1e9),
    "classes": (2, 1e6),
    # One to train on, one for the local test and one for the common test set.
    "least": (3, 1e9),
    "most": (3, 1e9),
    "log_mean": (-20, 20),
    "log_std": (0, 20),
    "seed": (0, 2**63 - 1),
    "clients": (1, 1e6),
}
"""Of the arguments, both included."""


def load(request: SourceRequest) -> Dataset:
    """Return samples [n, features] float32 owned by the clients, in client order.

    Client k has its own model and mean. It labels its samples by y = argmax(W x + b), with u ~ N(0, α²), W
    and b ~ N(u, 1). It draws them by B ~ N(0, β²), v_j ~ N(B, 1), x_j ~ N(v_j, j^-1.2). So α sets the
    difference of clients' models, β that of their samples. Both are standard deviations, as in the authors'
    program; the paper writes N(0, α). With `iid` all clients have one model and one mean, v = 0.

    A client has `least` samples plus a log-normal number (`log_mean`, `log_std`), at most `most` in all.
    `test_share` of them, at least one, belong to the common test set. Draws derive from the data set's own
    `seed` and the client's number: client 7 has the same samples among 10 clients and among 10,000.

    Arguments: `alpha`, `beta`, `iid`, `features`, `classes`, `least`, `log_mean`, `log_std`, `most`,
    `test_share`, `seed`, and `clients`, by default `data.clients`. Invalid ones raise a `UserError`.
    """
    models = {"alpha": 1.0, "beta": 1.0, "iid": False, "features": 60, "classes": 10}
    numbers = {"least": 50, "log_mean": 4.0, "log_std": 2.0, "most": int, "test_share": 0.1}
    args = request.arguments(**models, **numbers, seed=0, clients=request.clients)
    _check(args)
    clients, features, classes = args["clients"], args["features"], args["classes"]
    sizes = _sizes(args)
    tests = np.maximum(np.rint(args["test_share"] * sizes).astype(np.int64), 1)
    total = int(sizes.sum())
    check_memory_budget(4 * total * features, f"{total:,} samples of {clients:,} clients take", "data.args")
    if total > 1_000_000:
        request.progress(f"making {total:,} samples of {clients:,} clients")
    x, y = np.empty((total, features), np.float32), np.empty(total, np.int64)
    is_test = np.zeros(total, bool)
    start = 0
    for client, (size, tested) in enumerate(zip(sizes.tolist(), tests.tolist(), strict=True)):
        stop = start + size
        x[start:stop], y[start:stop] = _samples(client, size, args)
        is_test[stop - tested : stop] = True
        start = stop
    owners = np.repeat(np.arange(clients), sizes)[~is_test]
    names = tuple(str(label) for label in range(classes))
    return Dataset(request.name, names, x[~is_test], y[~is_test], x[is_test], y[is_test], owners)


def _samples(client: int, size: int, args: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    features, classes, shared = args["features"], args["classes"], args["iid"]
    draw = numpy_generator(args["seed"], "synthetic", client=client)
    level, centre = args["alpha"] * draw.standard_normal(), args["beta"] * draw.standard_normal()
    own = numpy_generator(args["seed"], "synthetic") if shared else draw
    model = own.standard_normal((features + 1, classes)) + (0.0 if shared else level)
    mean = np.zeros(features) if shared else centre + draw.standard_normal(features)
    scale = np.arange(1, features + 1) ** (DECAY / 2)
    x = mean + scale * draw.standard_normal((size, features))
    return x, (x @ model[:-1] + model[-1]).argmax(axis=1)


def _sizes(args: dict[str, Any]) -> np.ndarray:
    generators = (numpy_generator(args["seed"], "synthetic-size", client=k) for k in range(args["clients"]))
    draws = [generator.standard_normal() for generator in generators]
    drawn = np.exp(np.minimum(args["log_mean"] + args["log_std"] * np.array(draws), 30.0))
    sizes = args["least"] + drawn.astype(np.int64)
    return sizes if args["most"] is None else np.minimum(sizes, args["most"])


def _check(args: dict[str, Any]) -> None:
    for name, (least, most) in BOUNDS.items():
        if args[name] is not None and not least <= args[name] <= most:
            raise UserError(f"must be ≥ {least:g} and ≤ {most:g}, got {args[name]}", key=f"data.args.{name}")
    if not 0.0 < args["test_share"] < 1.0:
        raise UserError(f"must be between 0 and 1, got {args['test_share']}", key="data.args.test_share")
    if args["most"] is not None and args["most"] < args["least"]:
        raise UserError(f"must be ≥ least ({args['least']}), got {args['most']}", key="data.args.most")
