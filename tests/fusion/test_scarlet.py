"""SCARLET against loops and a federation in plain dictionaries; what the cache saves and never loses."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydantic import ValidationError
from rounds import (
    assert_distributions,
    draw_logits,
    entropy,
    guidance_for,
    knowledge_of,
    mean_by_loops,
    num_bytes,
    softmax_by_loops,
)
from small_views import SmallClient

from fedkd.fusion.distillation.dsfl import DSFL
from fedkd.fusion.distillation.scarlet import Scarlet
from fedkd.randomness import numpy_generator

SIZE, CLASSES = 30, 3


class Federation:
    """Runs rounds of a strategy with given logits, and keeps what every message weighs."""

    def __init__(self, strategy: Scarlet, clients: int) -> None:
        self.strategy = strategy
        self.clients = [SmallClient(logits=np.empty((SIZE, CLASSES), np.float32)) for _ in range(clients)]
        self.memory: dict[str, np.ndarray] = {}
        self.round = 0

    def run(self, present=None):
        self.round += 1
        present = range(len(self.clients)) if present is None else present
        logits = draw_logits(len(self.clients), SIZE, CLASSES, seed=self.round)
        request = self.strategy.request(SIZE, self.memory, numpy_generator(self.round, "request"))
        uploads = []
        for client in present:
            self.clients[client].all_logits = logits[client]
            self.clients[client].request = request
            uploads.append(self.strategy.upload(self.clients[client]))
        self.up = [num_bytes(upload) for upload in uploads]
        knowledge = knowledge_of(np.stack([upload["logits"] for upload in uploads]), present, request=request)
        guidance = self.strategy.fuse(knowledge, self.memory)
        self.memory = guidance.memory
        self.down = []
        for row, client in enumerate(present):
            arrays = guidance_for(row, guidance)
            self.down.append(num_bytes(arrays))
            self.clients[client].learn(self.strategy, arrays)
        return np.arange(SIZE) if request is None else request


def learned(logits: np.ndarray, **hyperparameters) -> np.ndarray:
    strategy, client = Scarlet(**hyperparameters), SmallClient(logits=logits[0])
    guidance = strategy.fuse(knowledge_of(logits), {})
    client.learn(strategy, guidance_for(0, guidance))
    return client.distilled[0][0]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 7.0])
def test_scarlet_equals_loops(exponent) -> None:
    logits = draw_logits()
    mean = mean_by_loops(softmax_by_loops(logits))
    raised = [[p**exponent for p in row] for row in mean]
    expected = [[p / sum(row) for p in row] for row in raised]
    assert_allclose(learned(logits, exponent=exponent), expected, rtol=1e-5)


def test_exponent_1_without_cache_equals_the_mean_of_dsfl() -> None:
    federation = Federation(Scarlet(exponent=1.0, cache_rounds=0, samples_per_round=SIZE), 4)
    for round in range(1, 4):
        federation.run()
        dsfl = DSFL(sharpen="mean").fuse(knowledge_of(draw_logits(4, SIZE, CLASSES, seed=round)), {})
        for client in federation.clients:
            targets, samples = client.distilled[-1]
            assert_allclose(targets, dsfl.targets, rtol=1e-6)
            assert_array_equal(samples, np.arange(SIZE))


def test_entropy_never_rises_above_exponent_one() -> None:
    mean = numpy_generator(0, "means").dirichlet(np.full(20, 0.2), 300).astype(np.float32)
    before = learned(np.log(mean + 1e-30)[None], exponent=1.0)
    for exponent in (1.0, 1.5, 4.0, 300.0):
        after = learned(np.log(mean + 1e-30)[None], exponent=exponent)
        assert_distributions(after)
        assert (entropy(after) <= entropy(before) + 1e-5).all()
        before = after


def test_cached_samples_are_sent_neither_up_nor_down() -> None:
    federation = Federation(Scarlet(cache_rounds=3, samples_per_round=SIZE), 3)
    row, index = CLASSES * 4, 4
    assert_array_equal(federation.run(), np.arange(SIZE))
    assert federation.up == [SIZE * row] * 3
    assert federation.down == [SIZE * (row + index + index)] * 3
    for _ in range(2):
        assert len(federation.run()) == 0
        assert federation.up == [0] * 3
        assert federation.down == [SIZE * index] * 3  # which samples to learn, and no label
    assert len(federation.run()) == SIZE  # D rounds are over
    first, second, third, fourth = (targets for targets, _ in federation.clients[0].distilled)
    assert_array_equal(first, second)
    assert_array_equal(first, third)
    assert np.abs(first - fourth).max() > 0.01


@pytest.mark.parametrize("samples_per_round", [None, 1, 12, SIZE, 99])
@pytest.mark.parametrize("cache_rounds", [0, 1, 2, 4])
def test_all_participants_learn_the_same_newest_labels(samples_per_round, cache_rounds) -> None:
    """Clients come and go; a federation in dictionaries says what each must learn."""
    strategy = Scarlet(cache_rounds=cache_rounds, samples_per_round=samples_per_round)
    federation = Federation(strategy, 5)
    labels: dict[int, tuple[int, np.ndarray]] = {}
    held: list[dict[int, int]] = [{} for _ in range(5)]
    rounds = [(0, 3), (0, 1), (1, 2), (4,), (0, 1, 2, 3, 4), (2, 4), (0, 3), (3,), (0, 1, 2, 3, 4)]
    for round, present in enumerate(rounds, start=1):
        asked = federation.run(present).tolist()
        for i in asked:
            assert i not in labels or round - labels[i][0] >= cache_rounds
        logits = draw_logits(5, SIZE, CLASSES, seed=round)[list(present)]
        mean = np.array(mean_by_loops(softmax_by_loops(logits)))
        for i in asked:
            labels[i] = (round, mean[i] ** 2 / (mean[i] ** 2).sum())
        drawn = federation.clients[present[0]].distilled[-1][1].tolist()
        assert set(asked) <= set(drawn)
        assert len(drawn) == min(samples_per_round or SIZE // 10, SIZE)
        for position, client in enumerate(present):
            targets, samples = federation.clients[client].distilled[-1]
            assert samples.tolist() == drawn
            assert_allclose(targets, [labels[i][1] for i in drawn], rtol=1e-5, atol=1e-7)
            new = [i for i in drawn if held[client].get(i) != labels[i][0]]
            held[client] |= {i: labels[i][0] for i in new}
            assert federation.down[position] == len(drawn) * 4 + len(new) * (4 + CLASSES * 4)


@pytest.mark.parametrize("duration", [1, 2, 3, 5])
def test_a_cached_label_expires_after_the_set_rounds(duration) -> None:
    """The round that it is fused in is the first of them."""
    federation = Federation(Scarlet(cache_rounds=duration, samples_per_round=SIZE), 2)
    asked = [len(federation.run()) for _ in range(3 * duration + 1)]
    assert asked == [SIZE if round % duration == 0 else 0 for round in range(3 * duration + 1)]


@pytest.mark.parametrize(("size", "drawn"), [(1, 1), (9, 1), (10, 1), (11, 2), (30, 3), (1000, 100)])
def test_a_tenth_of_the_samples_is_drawn_by_default(size, drawn) -> None:
    asked = Scarlet().request(size, {}, numpy_generator(0, "request"))
    assert (size if asked is None else len(asked)) == drawn


def test_cached_samples_are_drawn_as_often_as_others() -> None:
    federation = Federation(Scarlet(samples_per_round=6, cache_rounds=10), 1)
    for _ in range(300):
        federation.run()
    drawn = np.concatenate([samples for _, samples in federation.clients[0].distilled])
    counts = np.bincount(drawn, minlength=SIZE)  # 60 each, with a standard deviation of 7
    assert counts.min() > 60 - 30 and counts.max() < 60 + 30


def test_a_missing_cached_label_is_an_error() -> None:
    client = SmallClient(logits=draw_logits(1, SIZE, CLASSES)[0])
    nothing = {"new_samples": np.empty(0, np.int32), "new_labels": np.empty((0, CLASSES), np.float32)}
    client.learn(Scarlet(), {"wanted": np.array([2, 4], np.int32), **nothing})
    assert np.isnan(client.distilled[0][0]).all()


def test_recorded_targets_include_cached_labels() -> None:
    client = SmallClient(logits=draw_logits(1, SIZE, CLASSES)[0])
    strategy, row = Scarlet(), np.full((1, CLASSES), 1 / CLASSES, np.float32)
    for wanted, new in ([2], [2]), ([2, 4], [4]):
        guidance = {
            "wanted": np.array(wanted, np.int32),
            "new_samples": np.array(new, np.int32),
            "new_labels": row,
        }
        client.learn(strategy, guidance)
        targets, samples = strategy.targets_of(client, guidance)
        assert_array_equal(targets, client.distilled[-1][0])
        assert_array_equal(samples, client.distilled[-1][1])
        assert np.isfinite(targets).all() and samples.tolist() == wanted


@pytest.mark.parametrize("wrong", [{"exponent": 0}, {"cache_rounds": -1}, {"samples_per_round": 0}])
def test_wrong_hyperparameters_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        Scarlet(**wrong)


def test_an_estimator_predicts_nothing_for_an_empty_request() -> None:
    """Rounds whose samples are all cached ask for none; scikit-learn refuses to predict an empty array."""
    from fedkd.models.estimator import EstimatorModel, sgd

    model = EstimatorModel(lambda: sgd((2,), 2), classes=2)
    x = numpy_generator(0, "x").normal(size=(10, 2)).astype(np.float32)
    model.fit(x, np.arange(10) % 2, x, seed=1)
    assert model.predict_logits(x).shape == (10, 2)
    assert model.predict_logits(x[:0]).shape == (0, 2)
