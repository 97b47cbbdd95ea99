"""Documents of topics that differ in the frequency of some words, with a known Bayes rule."""

from dataclasses import replace

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.kinds import TEXT
from fedkd.data.memory_budget import check_memory_budget
from fedkd.data.request import SourceRequest
from fedkd.errors import refuse_if
from fedkd.randomness import numpy_generator

COMMON, OWN = 20, 50
"""The first words belong to no topic; each topic has words of its own."""


def load(request: SourceRequest) -> Dataset:
    """Return token ids of documents whose words are drawn independently, and their topic.

    Topic c draws words from (1 − λ) · Zipf(1) + λ · Dirichlet(1) over 50 words of its own, whose ranks are
    above 20. λ is the argument `share`. The Bayes accuracy of 32 words and 4 topics is 79 % with λ = 0.05,
    95 % with 0.1 and 99 % with 0.15.

    Arguments: `words`, `topics`, `length`, `share`, the numbers of samples `train` and `test`, and the `seed`
    of the data set.
    """
    sizes = {"words": 2000, "topics": 4, "length": 32, "train": 4000, "test": 2000}
    args = request.arguments(**sizes, share=0.1, seed=0)
    least = {"words": COMMON + OWN, "topics": 2, "length": 1, "train": 4, "test": 2}
    for key, bound in least.items():
        refuse_if(args[key] < bound, f"must be ≥ {bound}, got {args[key]}", f"data.args.{key}")
    refuse_if(not 0 <= args["share"] <= 1, f"must be from 0 to 1, got {args['share']}", "data.args.share")
    refuse_if(args["seed"] < 0, f"must be ≥ 0, got {args['seed']}", "data.args.seed")
    size, topics = args["train"] + args["test"], args["topics"]
    refuse_if(args["train"] < topics, f"must be ≥ topics ({topics})", "data.args.train")
    told = f"{size:,} documents and {topics:,} topics take"
    check_memory_budget(8 * (size * args["length"] + topics * args["words"]), told, "data.args")
    words = topic_words(args["words"], topics, args["share"], args["seed"])
    draw = numpy_generator(args["seed"], "topic-samples")
    # The train split has all topics.
    y = np.concatenate([draw.permutation(np.arange(args[part]) % topics) for part in ("train", "test")])
    x = np.empty((size, args["length"]), np.int64)
    for topic in range(topics):
        own = y == topic
        x[own] = 1 + draw.choice(args["words"], (int(own.sum()), args["length"]), p=words[topic])
    cut, kind = args["train"], replace(TEXT, vocabulary=args["words"] + 1)
    names = tuple(f"topic {topic}" for topic in range(topics))
    return Dataset(request.name, names, x[:cut], y[:cut], x[cut:], y[cut:], kind=kind)


def topic_words(words: int, topics: int, share: float, seed: int) -> np.ndarray:
    """Return the probabilities of words [topics, words] float64."""
    zipf = 1.0 / np.arange(1, words + 1)
    found = np.tile((1 - share) * zipf / zipf.sum(), (topics, 1))
    for topic in range(topics):
        draw = numpy_generator(seed, "topic-words", client=topic)
        own = COMMON + draw.choice(words - COMMON, OWN, replace=False)
        found[topic, own] += share * draw.dirichlet(np.ones(OWN))
    return found / found.sum(axis=1, keepdims=True)


def topic_posterior(x: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return the posterior [n, topics] float64 of ids [n, L] by `topic_words`, the Bayes rule."""
    with np.errstate(divide="ignore"):
        log = np.log(words)[:, x - 1].sum(axis=2).T
    ratio = np.exp(log - log.max(axis=1, keepdims=True))
    return ratio / ratio.sum(axis=1, keepdims=True)
