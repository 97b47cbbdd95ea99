"""Estimators behind their adapters: refits by hand, columns, seeds, states, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.errors import UserError
from fedkd.models.estimator import (
    FLOOR,
    EstimatorModel,
    IncrementalModel,
    check_estimator,
    client_estimator,
    gradient_boosting,
    is_estimator_class,
    random_forest,
    sgd,
)
from fedkd.randomness import numpy_generator

D, C, M = 4, 3, 12
ROWS = np.arange(M)


def blobs(samples: int, classes: list[int], purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """Return samples `[n, 2, 2]` around a corner of their class, and labels `[n]`."""
    generator = numpy_generator(0, purpose)
    y = np.resize(np.array(classes), samples)
    x = 3.0 * np.eye(C, D)[y] + generator.normal(size=(samples, D))
    return x.reshape(samples, 2, 2).astype(np.float32), y


X, Y = blobs(30, [0, 1, 2], "private")
TRANSFER, TRUE = blobs(M, [0, 1, 2], "transfer")
SOFT = (0.8 * np.eye(C)[TRUE] + 0.2 / C).astype(np.float32)

MAKERS = {
    "forest": lambda: random_forest((2, 2), C, trees=10),
    "boosting": lambda: gradient_boosting((2, 2), C, iterations=5, min_samples_leaf=3),
    "sgd": lambda: sgd((2, 2), C),
}


class Noted:
    """Notes what it is fitted on, and predicts the weighted class shares."""

    def fit(self, X, y, sample_weight):
        self.seen = (X, y, sample_weight)
        self.classes_ = np.unique(y)
        self.shares = np.array([sample_weight[y == label].sum() for label in self.classes_])
        return self

    def predict_proba(self, X):
        return np.tile(self.shares / self.shares.sum(), (len(X), 1))


class Nearest:
    """One nearest neighbour, whose `fit` knows no weights."""

    def fit(self, X, y):
        self.X, self.y = X, y

    def predict_proba(self, X):
        distance = ((X[:, None] - self.X[None]) ** 2).sum(axis=-1)
        return np.eye(C)[self.y[distance.argmin(axis=1)]]


class Centroids:
    """Running class means: learns on, has a `distill`, predicts logits."""

    def __init__(self, rate: float = 0.5) -> None:
        self.rate, self.means = rate, np.zeros((C, D))

    def _move(self, X, weights):
        share = weights.sum(axis=0)
        means = weights.T @ X / np.maximum(share, 1e-9)[:, None]
        self.means = np.where(
            share[:, None] > 0, (1 - self.rate) * self.means + self.rate * means, self.means
        )

    def fit(self, X, y):
        self._move(X, np.eye(C)[y])

    def distill(self, X, probabilities):
        self._move(X, probabilities)

    def predict_logits(self, X):
        return -((X[:, None] - self.means[None]) ** 2).sum(axis=-1)

    def state(self):
        return {"means": self.means}

    def restore(self, arrays):
        self.means = np.array(arrays["means"])


# Weighted refitting -----------------------------------------------------------------------------------


def test_a_refit_weighs_targets_by_their_probabilities():
    made: list[Noted] = []
    model = EstimatorModel(lambda: made.append(Noted()) or made[-1], C)
    model.fit(X, Y, TRANSFER, seed=1)
    assert_array_equal(made[-1].seen[2], np.ones(30))
    probabilities = np.array([[0.7, 0.295, 0.005], [0.0, 0.0, 1.0]])
    model.learn(X, Y, TRANSFER, np.array([5, 9]), probabilities, seed=2)
    rows, labels, weights = made[-1].seen
    assert_array_equal(rows[:30], X.reshape(30, D))
    assert_array_equal(rows[30:], TRANSFER.reshape(M, D)[[5, 5, 9]])
    assert labels[30:].tolist() == [0, 1, 2], "what is hardly possible is left out"
    assert weights[30:].tolist() == [0.7, 0.295, 1.0]
    model.learn(X, Y, TRANSFER, np.array([3]), probabilities[:1], seed=3)
    assert len(made[-1].seen[0]) == 32, "guidance replaces the last one"


def test_without_sample_weights_the_likeliest_class_is_learned():
    model = EstimatorModel(Nearest, C)
    swapped = SOFT[:, [1, 2, 0]]
    model.learn(X, Y, TRANSFER, ROWS, swapped, seed=1)
    assert_array_equal(model.predict_logits(TRANSFER).argmax(axis=1), swapped.argmax(axis=1))


@pytest.mark.parametrize("name", MAKERS)
def test_distillation_raises_the_agreement_with_targets(name):
    """The client has only two classes; its guidance knows the third."""
    x, y = blobs(20, [0, 1], "two classes")
    model = EstimatorModel(MAKERS[name], C)
    model.fit(x, y, TRANSFER, seed=1)
    before = model.predict_logits(TRANSFER)
    assert_allclose(before[:, 2], np.log(FLOOR), rtol=1e-6)
    model.learn(x, y, TRANSFER, ROWS, SOFT, seed=2)
    after = model.predict_logits(TRANSFER)
    assert (after.argmax(axis=1) == TRUE).mean() >= (before.argmax(axis=1) == TRUE).mean() + 0.25
    assert np.isfinite(after).all()


@pytest.mark.parametrize("name", MAKERS)
def test_refits_and_restored_states_agree_byte_for_byte(name):
    first, second = (EstimatorModel(MAKERS[name], C) for _ in range(2))
    for model in (first, second):
        model.fit(X, Y, TRANSFER, seed=7)
        model.learn(X, Y, TRANSFER, ROWS, SOFT, seed=2**40 + 5)
    restored = EstimatorModel(MAKERS[name], C)
    restored.restore(first.state(), X, Y, TRANSFER)
    expected = first.predict_logits(TRANSFER).tobytes()
    assert second.predict_logits(TRANSFER).tobytes() == expected
    assert restored.predict_logits(TRANSFER).tobytes() == expected
    for model in (first, restored):
        model.fit(X[:20], Y[:20], TRANSFER, seed=8)
    assert first.predict_logits(X).tobytes() == restored.predict_logits(X).tobytes()


def test_a_forest_follows_its_seed():
    model = EstimatorModel(MAKERS["forest"], C)
    predictions = set()
    for seed in (1, 2, 1):
        model.fit(X, Y, TRANSFER, seed)
        predictions.add(model.predict_logits(X).tobytes())
    assert len(predictions) == 2


@pytest.mark.parametrize("name", MAKERS)
def test_an_estimator_of_one_class_learns_from_targets(name):
    x, y = blobs(10, [1], "one class")
    model = EstimatorModel(MAKERS[name], C)
    assert not model.predict_logits(x).any(), "before the first fit all classes are alike"
    model.fit(x, y, TRANSFER, seed=1)
    assert_allclose(model.predict_logits(x), np.log([[FLOOR, 1.0, FLOOR]] * 10), rtol=1e-6)
    model.learn(x, y, TRANSFER, ROWS, SOFT, seed=1)
    assert (model.predict_logits(TRANSFER).argmax(axis=1) == TRUE).mean() > 0.5


def test_an_estimator_without_samples_predicts_uniformly():
    model = EstimatorModel(MAKERS["sgd"], C)
    model.fit(X[:0], Y[:0], TRANSFER, seed=1)
    assert not model.predict_logits(X).any()
    model.learn(X[:0], Y[:0], TRANSFER, ROWS, SOFT, seed=1)
    assert (model.predict_logits(TRANSFER).argmax(axis=1) == TRUE).mean() > 0.5


# Predictions ------------------------------------------------------------------------------------------


class Fixed:
    """Predicts what it is given, under the method it is told."""

    def __init__(self, values, classes=None, method="predict_proba"):
        if classes is not None:
            self.classes_ = np.array(classes)
        setattr(self, method, lambda X: np.array(values))

    def fit(self, X, y, sample_weight=None):
        return self


def predicted(*args, **kwargs) -> np.ndarray:
    model = EstimatorModel(lambda: Fixed(*args, **kwargs), C)
    model.fit(X, Y, TRANSFER, seed=1)
    return model.predict_logits(X[:1])[0]


def test_columns_belong_to_trained_classes():
    assert_allclose(predicted([[0.25, 0.75]], classes=[2, 0]), np.log([0.75, FLOOR, 0.25]), rtol=1e-6)
    assert_allclose(predicted([[0.1, 0.2, 0.7]]), np.log([0.1, 0.2, 0.7]), rtol=1e-6)


def test_logits_are_unchanged_and_unseen_classes_lie_below():
    assert_allclose(predicted([[-3.0, 8.0, 1.5]], method="predict_logits"), [-3.0, 8.0, 1.5])
    logits = predicted([[-3.0, 8.0]], classes=[1, 2], method="predict_logits")
    assert_allclose(logits, [-3.0 + np.log(FLOOR), -3.0, 8.0], rtol=1e-6)


@pytest.mark.parametrize("method", ["predict_proba", "predict_logits"])
def test_predictions_of_a_wrong_shape_are_refused(method):
    with pytest.raises(UserError, match=rf"`{method}` of Fixed returned \[1, 2\]; must be \[1, 3\]"):
        predicted([[0.5, 0.5]], method=method)


# A way of its own -------------------------------------------------------------------------------------


def test_an_estimator_with_distill_is_not_refitted():
    model, alone = client_estimator(Centroids, C), Centroids()
    assert isinstance(model, IncrementalModel)
    assert not model.predict_logits(X).any() and model.state() == {}
    model.fit(X, Y, TRANSFER, seed=1)
    model.learn(X, Y, TRANSFER, np.array([1, 4]), SOFT[[1, 4]], seed=1)
    alone.fit(X.reshape(30, D), Y)
    alone.distill(TRANSFER.reshape(M, D)[[1, 4]], SOFT[[1, 4]].astype(np.float64))
    expected = alone.predict_logits(X.reshape(30, D)).astype(np.float32)
    assert_array_equal(model.predict_logits(X), expected)


def test_a_saved_state_does_not_change_afterwards():
    model = client_estimator(Centroids, C)
    model.fit(X, Y, TRANSFER, seed=1)
    state = model.state()
    restored = client_estimator(Centroids, C)
    restored.restore(state, X, Y, TRANSFER)
    kept = {name: array.copy() for name, array in state.items()}
    for each in (model, restored):
        each.learn(X, Y, TRANSFER, ROWS, SOFT, seed=1)
    assert model.predict_logits(X).tobytes() == restored.predict_logits(X).tobytes()
    for name, array in kept.items():
        assert_array_equal(state[name], array)
    restored.restore(client_estimator(Centroids, C).state(), X, Y, TRANSFER)
    assert not restored.predict_logits(X).any(), "a state of before the first fit"


@pytest.mark.parametrize(
    ("state", "message"), [([1.0], "returned a list"), ({"tree": {}}, "'tree' of type object")]
)
def test_a_state_must_be_a_table_of_arrays(state, message):
    class Odd(Centroids):
        def state(self):
            return state

    model = client_estimator(Odd, C)
    model.fit(X, Y, TRANSFER, seed=1)
    with pytest.raises(UserError, match=message):
        model.state()


def test_estimators_without_a_method_are_refused():
    class NoFit:
        predict_proba = None

    class NoPrediction:
        def fit(self, X, y): ...

    class Forgetful(Nearest):
        def distill(self, X, probabilities): ...

    class Amnesic(Forgetful):
        def state(self): ...

    for made, message in (
        (NoFit(), "without `fit`"),
        (NoPrediction(), "without `predict_proba`; .*or `predict_logits`"),
        (Forgetful(), "without `state`"),
        (Amnesic(), "without `restore`"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            check_estimator("mine:Model", made)
        assert caught.value.key == "clients.model"
    for good in (Centroids, Nearest):
        check_estimator("mine:Model", good())
        assert is_estimator_class(good)
    assert not is_estimator_class(random_forest)
