"""Partitions with replacement."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.data.federated import FederatedData, load_federated_data
from fedkd.data.partitions.replacement import REPLACEMENT_SCHEMES, Pool, draw_with_replacement
from fedkd.data.partitions.schemes import mix_counts, own_mix_counts
from fedkd.errors import UserError
from fedkd.plan.load import parse_plan
from fedkd.scenario.schema import Partition


def labels_of(samples: int, classes: int = 10) -> np.ndarray:
    return np.random.default_rng(5).permutation(np.arange(samples) % classes)


def draw(labels, clients, test_fraction=0.2, seed=1, task=None, **scheme):
    spec = Partition(**{"scheme": "iid", "samples_per_client": 20, "replacement": True, **scheme})
    return draw_with_replacement(labels, clients, spec, test_fraction, seed, task=task)


@pytest.mark.parametrize("scheme", REPLACEMENT_SCHEMES)
@pytest.mark.parametrize("alpha", [0.05, 100.0])
def test_replacement_allows_more_clients_than_samples(scheme, alpha):
    labels = labels_of(150)
    drawn = draw(labels, 200, scheme=scheme, alpha=alpha, min_samples=5)
    trained, tested = ([of[place] for of in drawn] for place in (0, 1))
    for train, test in drawn:
        assert len(np.unique(train)) == len(train) >= 1 and len(np.unique(test)) == len(test) >= 1
    everything = np.concatenate(trained), np.concatenate(tested)
    assert not np.intersect1d(*everything).size, "nobody trains on what somebody is tested on"
    assert min(map(np.min, everything)) >= 0 and max(map(np.max, everything)) < 150
    if scheme == "quantity":
        assert len({len(train) for train in trained}) > 1
    else:
        assert {(len(train), len(test)) for train, test in drawn} == {(16, 4)}


def test_every_sample_is_equally_likely():
    drawn = draw(labels_of(100), 4000, samples_per_client=10)
    often = np.bincount(np.concatenate([train for train, _ in drawn]), minlength=100)
    often = often[often > 0]
    assert len(often) == 80
    expected = 4000 * 8 / 80
    # Of a hypergeometric count, a little below the binomial one: 6 standard deviations.
    assert np.abs(often - expected).max() < 6 * np.sqrt(expected)


def test_label_mixes_follow_the_scheme():
    labels = labels_of(2000)

    def own_share(alpha: float, scheme: str) -> float:
        drawn = draw(labels, 100, scheme=scheme, alpha=alpha, samples_per_client=50)
        counts = np.stack([np.bincount(labels[train], minlength=10) for train, _ in drawn])
        return float((counts.max(axis=1) / counts.sum(axis=1)).mean())

    for scheme in ("dirichlet", "dirichlet-per-client"):
        assert own_share(0.05, scheme) > 0.6 > 0.3 > own_share(1000.0, scheme), scheme
    tested = draw(labels, 50, scheme="dirichlet-per-client", alpha=0.01, samples_per_client=50)
    alike = [np.bincount(labels[a]).argmax() == np.bincount(labels[b]).argmax() for a, b in tested]
    assert np.mean(alike) > 0.9, "a client is tested on what is distributed like what it trains on"


def test_a_class_mix_is_followed_while_samples_last():
    labels = np.array([0] * 5 + [1] * 95)
    pool = Pool(labels, np.arange(100))
    rngs = [np.random.default_rng(0)] * 2
    drawn, nothing = pool.draw(np.array([20, 0]), np.array([[1.0, 0.0], [1.0, 0.0]]), rngs)
    assert np.bincount(labels[drawn]).tolist() == [5, 15]
    assert len(np.unique(drawn)) == 20
    assert len(nothing) == 0


@pytest.mark.parametrize("classes", [1, 2, 10, 200])
def test_clients_that_share_a_supply_are_counted_alike_at_once_and_alone(classes):
    rng = np.random.default_rng(classes)
    mixes = rng.dirichlet(np.full(classes, 0.1), size=30) * rng.integers(0, 2, (30, 1))
    supply = rng.integers(0, 9, classes) + 1
    sizes = rng.integers(0, supply.sum() + 1, 30)
    alone = [
        mix_counts(mix[None], np.array([size]), supply, rng)[0]
        for mix, size in zip(mixes, sizes, strict=True)
    ]
    assert np.array_equal(own_mix_counts(mixes, sizes, supply), alone)


def test_the_draws_of_a_client_ignore_other_clients():
    labels = labels_of(150)
    for scheme in ("iid", "dirichlet-per-client"):
        few, many = (draw(labels, clients, scheme=scheme, task=2) for clients in (3, 30))
        for (a, b), (c, d) in zip(few, many[:3], strict=True):
            assert np.array_equal(a, c) and np.array_equal(b, d)
        assert not np.array_equal(many[0][0], many[1][0])
        assert not np.array_equal(few[0][0], draw(labels, 3, scheme=scheme, seed=2, task=2)[0][0])


def test_all_samples_are_trained_on_without_local_tests():
    drawn = draw(labels_of(30), 5, test_fraction=0.0, samples_per_client=30)
    assert all(sorted(train) == list(range(30)) and len(test) == 0 for train, test in drawn)


@pytest.mark.parametrize(
    ("samples", "scheme", "words"),
    [(25, {"samples_per_client": 26}, "got 26"), (25, {"samples_per_client": 10}, "")],
)
def test_a_client_cannot_hold_more_samples_than_exist(samples, scheme, words):
    if words:
        with pytest.raises(UserError, match=f"draw a sample twice; there are {samples}.*{words}") as caught:
            draw(labels_of(samples), 3, **scheme)
        assert caught.value.key == "data.partition.samples_per_client"
    else:
        assert len(draw(labels_of(samples), 300, **scheme)) == 300


@pytest.fixture
def data(scenario) -> FederatedData:
    partition = {"scheme": "dirichlet", "alpha": 0.3, "samples_per_client": 30, "replacement": True}
    return load_federated_data(scenario(clients=300, partition=partition, transfer={"size": 60}))


def test_train_test_and_transfer_samples_are_disjoint(data):
    def sources(bounds) -> np.ndarray:
        return np.unique(np.concatenate([data.source_index[slice(*of)] for of in bounds]))

    train, test = sources(data.train_bounds), sources(data.test_bounds)
    assert not np.intersect1d(train, test).size
    assert len(data.y) == 300 * 30 > len(np.unique(data.source_index))
    public, private = ({sample.tobytes() for sample in of} for of in (data.transfer_x, data.x))
    assert len(public) == 60 and not public & private
    assert not {sample.tobytes() for sample in data.test_x} & private


@pytest.mark.parametrize(
    ("partition", "key", "words"),
    [
        ({"scheme": "shards", "samples_per_client": 20}, "replacement", "scheme is 'shards'"),
        ({"scheme": "natural"}, "replacement", "scheme is 'natural'"),
        ({"scheme": "iid"}, "samples_per_client", "missing; a draw with replacement"),
    ],
)
def test_impossible_replacement_settings_are_refused(partition, key, words, digits_scenario):
    tables = digits_scenario | {"data": {"clients": 4, "partition": partition | {"replacement": True}}}
    with pytest.raises(UserError, match=words) as caught:
        parse_plan(tables)
    assert caught.value.key == f"data.partition.{key}"


def test_more_samples_than_fit_into_memory_are_refused(scenario, monkeypatch):
    monkeypatch.setattr("fedkd.data.memory_budget.machine_memory", lambda: 10**6)
    partition = {"scheme": "iid", "samples_per_client": 1000, "replacement": True}
    with pytest.raises(UserError, match="4,000 samples of 4 clients take") as caught:
        load_federated_data(scenario(clients=4, partition=partition, transfer={"size": 60}))
    assert caught.value.key == "data.partition.samples_per_client"
