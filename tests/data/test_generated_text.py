"""Generated token ids: their Bayes rules, and what their distributions promise."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from fedkd.data.registry import load_dataset
from fedkd.data.request import SourceRequest
from fedkd.data.sources.order import order_cycle, order_posterior
from fedkd.data.sources.topics import topic_posterior, topic_words
from fedkd.errors import UserError


def load(name, tmp_path, **args):
    return load_dataset(SourceRequest(name, tmp_path, args))


@pytest.mark.parametrize(("noise", "published"), [(0.95, 0.73), (0.9, 0.85), (0.8, 0.96)])
def test_the_bayes_rule_of_order_has_its_accuracy(noise, published, tmp_path):
    data = load("order", tmp_path, noise=noise, test=20_000)
    posterior = order_posterior(data.test_x, 50, noise, 0)
    right = posterior.argmax(axis=1) == data.test_y
    bound = 2 * right.std() / len(right) ** 0.5
    assert right.mean() == pytest.approx(published, abs=0.01)
    assert posterior.max(axis=1).mean() == pytest.approx(right.mean(), abs=bound + 1e-9)


def test_the_posterior_of_order_is_that_of_its_transition_matrix():
    cycle, noise = order_cycle(5, 3), 0.6
    forwards = np.full((5, 5), noise / 5)
    forwards[np.arange(5), cycle] += 1 - noise
    x = np.random.default_rng(0).integers(1, 6, (7, 4))
    for row, found in zip(x - 1, order_posterior(x, 5, noise, 3), strict=True):
        chances = [np.prod([chain[a, b] for a, b in pairwise(row)]) for chain in (forwards, forwards.T)]
        assert found == pytest.approx(np.array(chances) / np.sum(chances), abs=1e-12)


def test_bags_of_both_orders_have_one_distribution(tmp_path):
    data = load("order", tmp_path, train=20_000, noise=0.0)
    first = [np.sort(data.train_x[data.train_y == label], axis=1) for label in (0, 1)]
    means = [part.mean(axis=0) for part in first]
    error = sum(part.var(axis=0) / len(part) for part in first) ** 0.5
    assert (np.abs(means[0] - means[1]) < 4 * error).all()
    steps = order_cycle(50, 0)[data.train_x[:, :-1] - 1] == data.train_x[:, 1:] - 1
    assert steps[data.train_y == 0].all() and not steps[data.train_y == 1].any()


@pytest.mark.parametrize(("share", "published"), [(0.05, 0.79), (0.1, 0.95), (0.15, 0.99)])
def test_the_bayes_rule_of_topics_has_its_accuracy(share, published, tmp_path):
    """The published figures are means over draws of the words; a draw differs by a point or two."""
    found = []
    for seed in range(4):
        data = load("topics", tmp_path, share=share, test=5000, seed=seed)
        posterior = topic_posterior(data.test_x, topic_words(2000, 4, share, seed))
        right = posterior.argmax(axis=1) == data.test_y
        bound = 3 * right.std() / len(right) ** 0.5
        assert posterior.max(axis=1).mean() == pytest.approx(right.mean(), abs=bound)
        found.append(right.mean())
    assert np.mean(found) == pytest.approx(published, abs=0.02)


def test_words_of_topics_are_a_distribution():
    words = topic_words(2000, 3, 0.25, 1)
    zipf = 1 / np.arange(1, 2001) / (1 / np.arange(1, 2001)).sum()
    assert words.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-12)
    raised = words - 0.75 * zipf > 1e-15
    assert not raised[:, :20].any() and (raised.sum(axis=1) == 50).all()


@pytest.mark.parametrize(
    ("name", "args", "told"),
    [
        ("order", {"tokens": 2}, "data.args.tokens: must be ≥ 3, got 2"),
        ("order", {"noise": 1.5}, "data.args.noise: must be from 0 to 1, got 1.5"),
        ("order", {"lenght": 3}, "data.args.lenght: unknown argument of 'order'; did you mean 'length'?"),
        ("order", {"train": 10**12}, "data.args: "),
        ("topics", {"words": 69}, "data.args.words: must be ≥ 70, got 69"),
        ("topics", {"share": -0.1}, "data.args.share: must be from 0 to 1, got -0.1"),
        ("topics", {"topics": 10**9}, "data.args.train: must be ≥ topics"),
    ],
)
def test_wrong_arguments_are_one_line(name, args, told, tmp_path):
    with pytest.raises(UserError) as caught:
        load(name, tmp_path, **args)
    assert f"{caught.value.key}: {caught.value.message}".startswith(told)
