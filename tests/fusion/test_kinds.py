"""What clients upload, by kind: of every strategy, of a client half alone, of a plug-in that says nothing."""

from __future__ import annotations

import numpy as np
import pytest
from small_views import SmallClient, SmallServer

from fedkd.fusion.kinds import Kind
from fedkd.fusion.registry import STRATEGIES, make_strategy
from fedkd.fusion.views import FitSummary
from fedkd.fusion.weights.weight_exchange import WeightExchange

FEATURES, CLASSES, SAMPLES = 5, 3, 6


def client_of_all_trades() -> SmallClient:
    """Return a client with an answer to everything that a strategy may ask for."""
    rng = np.random.default_rng(0)
    server = SmallServer(rng.normal(size=(SAMPLES, FEATURES)).astype(np.float32), CLASSES)
    means = {"logits": np.zeros((CLASSES, CLASSES)), "features": np.zeros((CLASSES, FEATURES))}
    client = SmallClient(
        logits=rng.normal(size=(SAMPLES, CLASSES)).astype(np.float32),
        private_logits=np.zeros((4, CLASSES), np.float32),
        means=means,
        counts=np.array([1, 2, 1]),
        weights={n.replace("3.", "head."): w for n, w in server.initial_weights("normed").items()},
    )
    client.last_fit = FitSummary(start=client.weights(), steps=2, lr=0.1)
    client.memory["control"] = np.zeros(sum(client.weights()[name].size for name in client.trainable()))
    return client


@pytest.mark.parametrize("name", STRATEGIES.builtin)
def test_every_strategy_declares_exactly_its_uploads(name) -> None:
    strategy, found = make_strategy(name, {}), set()
    shared, whole_model = {"distribution": "shared"}, {"share": "model"}
    others = {"knfu": [shared], "fedgen": [whole_model]}
    for options in ({}, *others.get(name, [])):
        upload = make_strategy(name, options).upload(client_of_all_trades())
        kinds = strategy.kinds_of(upload)
        assert Kind.OTHER not in kinds.values()
        found |= set(upload)
        for array, kind in kinds.items():
            rows = {Kind.TRANSFER_LOGITS: SAMPLES, Kind.VOTES: SAMPLES, Kind.LABEL_LOGITS: CLASSES}
            assert len(upload[array]) == rows.get(kind, len(upload[array]))
            assert not kind.is_prediction or upload[array].shape[-1] == CLASSES
            whole = (kind.is_honest and kind is not Kind.MASS) or kind in {
                *(Kind.VOTES, Kind.MASKS, Kind.SAMPLE_LABELS),
                *(Kind.SAMPLE_CLASSES, Kind.SHARES),
            }
            assert np.issubdtype(upload[array].dtype, np.floating) != whole
    if "kinds" in vars(type(strategy)):
        assert found == set(strategy.capabilities.kinds)


def test_precision_and_poison_apply_by_kind_of_upload() -> None:
    samples = {Kind.TRANSFER_LOGITS, Kind.SAMPLE_LOGITS}
    assert {kind for kind in Kind if kind.is_logits_of_samples} == samples
    assert {kind for kind in Kind if kind.is_prediction} == samples | {Kind.LABEL_LOGITS}
    assert {kind for kind in Kind if kind.is_stacked} == {Kind.TRANSFER_LOGITS, Kind.LABEL_COUNTS}
    honest = {Kind.LABEL_COUNTS, Kind.COUNTERS, Kind.MASS, Kind.INDICES, Kind.CONSTANT}
    assert {kind for kind in Kind if kind.is_honest} == honest


def test_undeclared_arrays_have_the_kind_other() -> None:
    kinds = make_strategy("knfu", {}).kinds_of({"logits": np.zeros(1), "sample_logits": np.zeros(1)})
    assert kinds == {"logits": Kind.TRANSFER_LOGITS, "sample_logits": Kind.OTHER}


def test_weight_exchange_sends_the_model_without_distillation() -> None:
    client, half = client_of_all_trades(), WeightExchange("flwr:FedAvg")
    assert (
        half.name == "flwr:FedAvg"
        and half.capabilities.sends == "weights"
        and not half.capabilities.uses_local_loss
    )
    assert half.capabilities.needs == {"gradients", "weights", "one_architecture"}
    upload = half.upload(client)
    assert upload.keys() == client.weights().keys()
    kinds = half.kinds_of(upload)
    assert {name for name, kind in kinds.items() if kind is Kind.COUNTERS} == {"1.num_batches_tracked"}
    assert set(kinds.values()) == {Kind.COUNTERS, Kind.WEIGHTS}
    assert half.targets_of(client, {}) is None
    with pytest.raises(NotImplementedError, match="'flwr:FedAvg' does not define `loss`"):
        half.loss(None, None)
