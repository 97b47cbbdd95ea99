"""Classes in low-dimensional subspaces, with a known Bayes rule: a toy world for streams of tasks."""

from typing import Any

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.memory_budget import check_memory_budget
from fedkd.data.request import SourceRequest
from fedkd.errors import UserError
from fedkd.randomness import numpy_generator

BOUNDS: dict[str, tuple[float, float]] = {
    "classes": (2, 1e4),
    "subspaces": (1, 1e4),
    "features": (1, 1e5),
    "rank": (1, 1e5),
    "samples": (1, 1e7),
    "tests": (1, 1e7),
    "few_classes": (0, 1e4),
    "few": (0, 1e7),
    "spread": (0, 1e6),
    "noise": (0, 1e6),
    "seed": (0, 2**63 - 1),
}
"""Of the arguments, both included."""
SCALE = 4.0


def load(request: SourceRequest) -> Dataset:
    """Return samples [n, features] float32 of classes that share `subspaces`, class by class.

    With Q [features, rank] orthonormal, one per subspace, and class means μ_c ~ N(0, spread² I)::

        x = [(μ_y + N(0, I)) Qᵀ + noise · N(0, I)] / 4

    The Bayes rule within a subspace is the nearest μ_c to 4xQ (`bayes_rule`). Classes are dealt to subspaces
    in equal runs. Each has `samples` training and `tests` test samples; the last `few_classes` classes have
    `few` training samples. Invalid arguments raise a `UserError`.
    """
    world = {"classes": 10, "subspaces": 1, "features": 64, "rank": 4, "spread": 3.0, "noise": 1.5}
    sizes = {"samples": 40, "tests": 50, "few_classes": 0, "few": 5}
    args = request.arguments(**world, **sizes, seed=0)
    _check(args)
    classes, few = args["classes"], args["few_classes"]
    counts = [args["samples"]] * (classes - few) + [args["few"]] * few
    rows = sum(counts) + classes * args["tests"]
    check_memory_budget(4 * rows * args["features"], f"{rows:,} samples take", "data.args")
    bases, means = subspaces(args), class_means(args)
    train = [_draw(args, bases, means, label, count, "train") for label, count in enumerate(counts)]
    test = [_draw(args, bases, means, label, args["tests"], "test") for label in range(classes)]
    names = tuple(str(label) for label in range(classes))
    labels, tested = np.repeat(np.arange(classes), counts), np.repeat(np.arange(classes), args["tests"])
    return Dataset(request.name, names, np.concatenate(train), labels, np.concatenate(test), tested)


def subspaces(args: dict[str, Any]) -> np.ndarray:
    """Return the orthonormal bases Q ``[subspaces, features, rank]``."""
    shape = (args["features"], args["rank"])
    generators = [numpy_generator(args["seed"], "subspace", task=n) for n in range(args["subspaces"])]
    return np.stack([np.linalg.qr(draw.standard_normal(shape))[0] for draw in generators])


def class_means(args: dict[str, Any]) -> np.ndarray:
    """Return the class means μ ``[classes, rank]``."""
    draw = numpy_generator(args["seed"], "subspace-means")
    return args["spread"] * draw.standard_normal((args["classes"], args["rank"]))


def bayes_rule(x: np.ndarray, basis: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return the most likely class ``[n]`` of samples ``[n, features]`` among those with `means`."""
    inner = SCALE * x @ basis
    return np.square(inner[:, None] - means[None]).sum(axis=2).argmin(axis=1)


def _draw(
    args: dict[str, Any], bases: np.ndarray, means: np.ndarray, label: int, count: int, split: str
) -> np.ndarray:
    draw = numpy_generator(args["seed"], f"subspace-{split}", task=label)
    basis = bases[label * args["subspaces"] // args["classes"]]
    inner = means[label] + draw.standard_normal((count, args["rank"]))
    outer = args["noise"] * draw.standard_normal((count, args["features"]))
    return ((inner @ basis.T + outer) / SCALE).astype(np.float32)


def _check(args: dict[str, Any]) -> None:
    for name, (least, most) in BOUNDS.items():
        if not least <= args[name] <= most:
            raise UserError(f"must be ≥ {least:g} and ≤ {most:g}, got {args[name]}", key=f"data.args.{name}")
    for name, other in (("rank", "features"), ("subspaces", "classes"), ("few_classes", "classes")):
        if args[name] > args[other]:
            told = f"must be ≤ {other} ({args[other]}), got {args[name]}"
            raise UserError(told, key=f"data.args.{name}")
