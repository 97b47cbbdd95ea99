"""Sequences of two classes that differ in the order of tokens alone, with a known Bayes rule."""

from dataclasses import replace

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.kinds import TEXT
from fedkd.data.memory_budget import check_memory_budget
from fedkd.data.request import SourceRequest
from fedkd.errors import refuse_if
from fedkd.randomness import numpy_generator


def load(request: SourceRequest) -> Dataset:
    """Return token ids of Markov chains over `tokens` tokens; the classes are the directions of one cycle.

    The next token is the cycle's next with probability 1 − `noise`, else uniform. Class 1 walks the cycle
    backwards. Bags of tokens of both classes have the same distribution, so a model that ignores order is
    right in half of all cases. The Bayes accuracy of 16 tokens is 96 % with noise 0.8, 85 % with 0.9.

    Arguments: `tokens`, `length`, `noise`, the numbers of samples `train` and `test`, and the `seed` of
    the data set.
    """
    args = request.arguments(tokens=50, length=16, noise=0.8, train=4000, test=2000, seed=0)
    for key, least in (("tokens", 3), ("length", 2), ("train", 4), ("test", 2)):
        refuse_if(args[key] < least, f"must be ≥ {least}, got {args[key]}", f"data.args.{key}")
    refuse_if(not 0 <= args["noise"] <= 1, f"must be from 0 to 1, got {args['noise']}", "data.args.noise")
    refuse_if(args["seed"] < 0, f"must be ≥ 0, got {args['seed']}", "data.args.seed")
    size = args["train"] + args["test"]
    check_memory_budget(16 * size * args["length"], f"{size:,} sequences take", "data.args")
    successor = order_cycle(args["tokens"], args["seed"])
    step = np.stack([successor, np.argsort(successor)])  # of both classes
    draw = numpy_generator(args["seed"], "order-samples")
    y = draw.permutation(np.arange(size) % 2)
    x = np.empty((size, args["length"]), np.int64)
    x[:, 0] = draw.integers(args["tokens"], size=size)
    for place in range(1, args["length"]):
        uniform = draw.integers(args["tokens"], size=size)
        x[:, place] = np.where(draw.random(size) < args["noise"], uniform, step[y, x[:, place - 1]])
    x += 1  # 0 is padding
    cut = args["train"]
    kind = replace(TEXT, vocabulary=args["tokens"] + 1)
    names = ("forwards", "backwards")
    return Dataset(request.name, names, x[:cut], y[:cut], x[cut:], y[cut:], kind=kind)


def order_cycle(tokens: int, seed: int) -> np.ndarray:
    """Return each token's successor [tokens] on one cycle over all tokens."""
    walk = numpy_generator(seed, "order-cycle").permutation(tokens)
    successor = np.empty(tokens, np.int64)
    successor[walk] = np.roll(walk, -1)
    return successor


def order_posterior(x: np.ndarray, tokens: int, noise: float, seed: int) -> np.ndarray:
    """Return the posterior [n, 2] float64 of the classes of ids [n, L], the Bayes rule."""
    successor = order_cycle(tokens, seed)
    before, after = x[:, :-1] - 1, x[:, 1:] - 1
    with np.errstate(divide="ignore"):  # without noise a step is impossible
        steps = [
            np.log((1 - noise) * (step[before] == after) + noise / tokens).sum(axis=1)
            for step in (successor, np.argsort(successor))
        ]
    log = np.stack(steps, axis=1)
    ratio = np.exp(log - log.max(axis=1, keepdims=True))
    return ratio / ratio.sum(axis=1, keepdims=True)
