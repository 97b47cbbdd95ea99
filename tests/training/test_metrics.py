"""Metrics of classification, each against a loop written by hand."""

from __future__ import annotations

from itertools import product
from math import isnan, log, nan

import numpy as np
import pytest

from fedkd.cli.main import main
from fedkd.training.metrics import METRICS, measure_metrics
from fedkd.training.task import CLASSIFICATION

CLASSES = 5
FUNCTIONS = {name: METRICS.load(name) for name in CLASSIFICATION.metrics}


def macro_f1(p, y):
    top = [max(range(CLASSES), key=lambda c: row[c]) for row in p]
    found = []
    for c in sorted({*y, *top}):
        tp = sum(a == c and b == c for a, b in zip(top, y, strict=True))
        fp = sum(a == c and b != c for a, b in zip(top, y, strict=True))
        fn = sum(a != c and b == c for a, b in zip(top, y, strict=True))
        found.append(2 * tp / (2 * tp + fp + fn))
    return sum(found) / len(found)


def balanced_accuracy(p, y):
    recalls = []
    for c in sorted(set(y)):
        own = [row for row, label in zip(p, y, strict=True) if label == c]
        recalls.append(sum(max(row) == row[c] for row in own) / len(own))
    return sum(recalls) / len(recalls)


def auroc(p, y):
    areas = []
    for c in sorted(set(y)):
        pairs = list(product((r[c] for r, t in zip(p, y, strict=True) if t == c),
                             (r[c] for r, t in zip(p, y, strict=True) if t != c)))  # fmt: skip
        if not pairs:
            return nan
        areas.append(sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs))
    return sum(areas) / len(areas)


def ece(p, y):
    total = 0.0
    for b in range(15):
        own = [(row, label) for row, label in zip(p, y, strict=True) if b / 15 < max(row) <= (b + 1) / 15]
        if own:
            accuracy = sum(max(row) == row[label] for row, label in own) / len(own)
            confidence = sum(max(row) for row, _ in own) / len(own)
            total += len(own) / len(y) * abs(accuracy - confidence)
    return total


BY_HAND = {
    "accuracy": lambda p, y: sum(max(row) == row[label] for row, label in zip(p, y, strict=True)) / len(y),
    "macro_f1": macro_f1,
    "balanced_accuracy": balanced_accuracy,
    "auroc": auroc,
    "ece": ece,
    "nll": lambda p, y: -sum(log(row[label]) for row, label in zip(p, y, strict=True)) / len(y),
    "brier": lambda p, y: sum(
        (row[c] - (c == label)) ** 2 for row, label in zip(p, y, strict=True) for c in range(CLASSES)
    ) / len(y),
}  # fmt: skip


def made(samples=60, classes=(0, 1, 2, 3)):
    """Return logits and targets; the model often knows the class, and class 4 is predicted and never true."""
    rng = np.random.default_rng(3)
    y = rng.choice(classes, samples)
    logits = rng.normal(size=(samples, CLASSES)) * 2
    logits[np.arange(samples), y] += rng.choice([0.0, 2.0], samples)
    logits[1] = logits[0]  # a tie between samples
    return logits.astype(np.float32), y


def softmax(logits):
    exps = np.exp(logits.astype(np.float64))
    return exps / exps.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", CLASSIFICATION.metrics)
def test_a_metric_equals_a_loop_by_hand(name):
    logits, y = made()
    assert 4 in logits.argmax(axis=1), "macro F1 must count a class that is only predicted"
    by_hand = BY_HAND[name](softmax(logits).tolist(), y.tolist())
    assert measure_metrics({name: FUNCTIONS[name]}, logits, y)[name] == pytest.approx(by_hand, abs=1e-12)


def test_the_order_of_samples_changes_nothing():
    logits, y = made()
    order = np.random.default_rng(0).permutation(len(y))
    assert measure_metrics(FUNCTIONS, logits[order], y[order]) == pytest.approx(
        measure_metrics(FUNCTIONS, logits, y), abs=1e-12
    )


@pytest.mark.parametrize("name", CLASSIFICATION.metrics)
def test_samples_of_one_class_have_every_metric_but_auroc(name):
    logits, y = made(classes=(2,))
    value = measure_metrics({name: FUNCTIONS[name]}, logits, y)[name]
    if name == "auroc":
        assert isnan(value)
    else:
        assert value == pytest.approx(BY_HAND[name](softmax(logits).tolist(), y.tolist()), abs=1e-12)


def test_two_classes_have_the_usual_area():
    y = np.array([0, 1, 1, 0])
    right = np.array([0.1, 0.4, 0.8, 0.35])
    assert FUNCTIONS["auroc"](np.stack([1 - right, right], axis=1), y) == 1.0
    right = np.array([0.1, 0.3, 0.8, 0.35])
    assert FUNCTIONS["auroc"](np.stack([1 - right, right], axis=1), y) == 0.75


def test_certain_answers_have_perfect_or_finite_metrics():
    y = np.array([0, 1, 2])
    right = measure_metrics(FUNCTIONS, np.eye(3) * 1e4, y)
    assert right == {name: float(name not in ("ece", "nll", "brier")) for name in FUNCTIONS}
    wrong = measure_metrics(FUNCTIONS, np.roll(np.eye(3), 1, axis=1) * 1e4, y)
    assert (wrong["ece"], wrong["brier"], wrong["nll"]) == (1.0, 2.0, pytest.approx(708.4, abs=0.1))


@pytest.mark.parametrize("logits", [np.zeros((0, 3)), np.full((2, 3), nan), np.full((2, 3), np.inf)])
def test_no_samples_and_diverged_models_have_no_metrics(logits):
    found = measure_metrics(FUNCTIONS, logits, np.zeros(len(logits), np.int64))
    assert list(found) == list(FUNCTIONS) and all(map(isnan, found.values()))


def raising(probabilities, targets):
    raise ZeroDivisionError("nothing to divide")


def ending(probabilities, targets):
    raise SystemExit(3)


def sorting(probabilities, targets):
    probabilities.sort()
    return 0.0


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda p, y: "0.5", "returned a str; must be a number"),
        (lambda p, y: None, "returned a NoneType; must be a number"),
        (lambda p, y: True, "returned a bool; must be a number"),
        (lambda p, y: np.zeros(2), "returned a ndarray; must be a number"),
        (lambda p, y: float("inf"), "is inf; must be finite"),
        (raising, "raised ZeroDivisionError: nothing to divide"),
        (ending, r"raised RuntimeError: it called sys.exit\(3\)"),
        (sorting, "raised ValueError: .*read-only"),
    ],
)
def test_a_function_that_returns_no_number_is_an_error_with_its_name(function, words):
    logits, y = made()
    with pytest.raises((TypeError, ValueError, RuntimeError), match=f"metric 'mine' {words}"):
        measure_metrics({"mine": function}, logits, y)


def test_numpy_numbers_are_numbers():
    logits, y = made()
    found = measure_metrics({"a": lambda p, y: np.float32(0.5), "b": lambda p, y: np.int64(2)}, logits, y)
    assert found == {"a": 0.5, "b": 2.0} and all(type(value) is float for value in found.values())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise KeyError('oops')", "metric 'mine' raised KeyError: 'oops'"),
        ("return probabilities.max(axis=1)", "metric 'mine' returned a ndarray; must be a number"),
        ("return float('inf')", "metric 'mine' is inf; must be finite"),
        ("return float(probabilities[len(targets) - 1, 9])", None),
    ],
)
def test_check_tries_plug_in_metrics_on_made_up_probabilities(body, words, tmp_path, capsys):
    (tmp_path / "tried.py").write_text(f"def mine(probabilities, targets):\n    {body}\n")
    path = tmp_path / "scenario.toml"
    path.write_text(
        'metrics = ["auroc", "tried:mine"]\nclients = [{ model = "mlp" }]\n'
        "[data]\nclients = 2\ntransfer = { size = 50 }\n"
    )
    assert main(["check", str(path)]) == (2 if words else 0)
    told = capsys.readouterr().err.splitlines()
    if words:
        assert len(told) == 1 and f"scenario.toml: metrics: {words}" in told[0]
        assert told[0].endswith("(tried on made-up probabilities [50, 10])")
