"""Uploads of every strategy fit, and one spoiled array of them is refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from test_every_strategy import FUSING, Round, draw

from fedkd.fusion.fedmd import FedMD
from fedkd.fusion.forms import FORMS, Unfit, check_alike, check_guidance, check_upload, required, sizes_of
from fedkd.fusion.kinds import Kind
from fedkd.fusion.registry import STRATEGIES, make_strategy
from fedkd.fusion.strategy import FusionStrategy, Guidance
from fedkd.fusion.weight_exchange import WeightExchange
from fedkd.server.guidance import tables_of

CLIENTS, M, C = 3, 7, 5
SIZES = {"M": M, "Y": 1, "C": C}


def uploads_of(name: str) -> tuple[FusionStrategy, list[dict[str, np.ndarray]], dict[str, int]]:
    """Return what the clients of a strategy send, and what a server knows of them."""
    known = STRATEGIES.load(name).__dataclass_fields__
    cheap = {"shared_model": "plain", "server_epochs": 0, "server_steps": 0}
    strategy = make_strategy(name, {key: value for key, value in cheap.items() if key in known})
    round = Round(strategy, draw((CLIENTS, M, C), seed=3))
    round.knowledge()
    weights, trainable = round.clients[0].weights(), round.clients[0].trainable()
    sizes = SIZES | sizes_of(strategy, weights, trainable)
    if round.clients[0].request is not None:
        sizes["M"] = len(round.clients[0].request)
    return strategy, [strategy.upload(client) for client in round.clients], sizes


def spoiled(values: np.ndarray, kind: Kind, shape: str | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what the array of a kind cannot be, with a word for it."""
    yield "complex", values.astype(np.complex64)
    yield "text", values.astype(str)
    if values.size and values.dtype.kind == "f":
        for told, number in (("NaN", np.nan), ("inf", np.inf), ("-inf", -np.inf), ("huge", 3e38)):
            other = values.astype(np.float32)
            other.flat[-1] = number
            yield told, other
        yield "whole numbers", values.astype(np.int64)
    if kind in (Kind.LABEL_COUNTS, Kind.VOTES, Kind.SAMPLE_LABELS, Kind.SAMPLE_CLASSES) and values.size:
        other = values.astype(np.int64)
        other.flat[0] = -1
        yield "negative", other
        other = values.astype(np.int64)
        other.flat[0] = 2**62
        yield "beyond all classes", other
    yield "one more dimension", values[None]
    if values.ndim == 2 and values.shape[0] != values.shape[1] and values.size:
        yield "transposed", values.T


@pytest.mark.parametrize("name", FUSING)
def test_an_upload_fits_and_a_spoiled_one_does_not(name):
    strategy, uploads, sizes = uploads_of(name)
    for arrays in uploads:
        check_upload(strategy, arrays, sizes)
    assert check_alike(dict(enumerate(uploads)), strategy) == {}
    kinds = strategy.kinds_of(uploads[0])
    assert Kind.OTHER not in kinds.values()
    for array, values in uploads[0].items():
        shape = strategy.shapes.get(array, FORMS[kinds[array]].shape)
        assert shape is not None, "a strategy of fedkd's says what its arrays look like"
        for what, wrong in spoiled(values, kinds[array], shape):
            with pytest.raises(Unfit, match=r"^array "):
                check_upload(strategy, uploads[0] | {array: wrong}, sizes)
                pytest.fail(f"{array} passed: {what}")
    for array in required(strategy):
        with pytest.raises(Unfit, match=f"array {array} is missing"):
            check_upload(strategy, {n: v for n, v in uploads[0].items() if n != array}, sizes)


def test_infinite_values_count_as_a_training_that_diverged():
    with pytest.raises(Unfit) as refused:
        check_upload(FedMD(), {"logits": np.full((M, C), np.nan, np.float32)}, SIZES)
    assert refused.value.diverged and str(refused.value) == (
        "array logits has values that are not numbers (NaN or infinite)"
    )
    with pytest.raises(Unfit) as refused:
        check_upload(FedMD(), {"logits": np.zeros((C, M), np.float32)}, SIZES)
    assert not refused.value.diverged
    assert str(refused.value) == "array logits has shape [5, 7], must be [7, 5]"


def test_without_known_sizes_most_clients_decide():
    """A server of Flower's that has no scenario knows neither M nor C."""
    logits = np.zeros((M, C), np.float32)
    sent: Mapping[int, dict[str, np.ndarray]] = {
        0: {"logits": logits[:, :-1]},
        4: {"logits": logits},
        5: {"logits": logits},
        8: {"logits": logits, "more": logits},
    }
    for arrays in sent.values():
        check_upload(FedMD(), arrays, {})
    found = {client: str(misfit) for client, misfit in check_alike(sent, FedMD()).items()}
    assert found == {
        0: "array logits has shape [7, 4]; C is 5 for most clients of its architecture",
        8: "sent logits, more; most clients sent logits",
    }


class Sparing(FusionStrategy):
    """Sends logits and, now and then, how sure it is; without a word about it."""

    name = "sparing"

    def upload(self, client):
        return {"sure": np.ones(3)}

    def fuse(self, knowledge, memory):
        return Guidance(None)


def test_a_strategy_that_does_not_say_what_it_sends_may_send_anything():
    assert required(Sparing()) == set()
    check_upload(Sparing(), {"sure": np.ones((3, 2, 1))}, SIZES)
    with pytest.raises(Unfit, match="array sure has values that are not numbers"):
        check_upload(Sparing(), {"sure": np.array([np.inf])}, SIZES)
    assert required(FedMD()) == {"logits"}
    assert required(make_strategy("knfu", {"distribution": "shared"})) == {"logits", "label_counts"}
    assert required(WeightExchange("flwr:FedAvg")) == set(), "the names are the model's"


@pytest.mark.parametrize("name", FUSING)
def test_guidance_fits_what_its_clients_expect(name):
    """Clients of a deployed federation refuse what their strategy does not send."""
    strategy, _, sizes = uploads_of(name)
    round = Round(strategy, draw((CLIENTS, M, C), seed=3))
    for _ in range(2):
        knowledge = round.knowledge()
        guidance = strategy.fuse(knowledge, round.memory)
        round.memory = guidance.memory
        for table in tables_of(guidance, knowledge)[0].values():
            if table and not strategy.brings_model:
                known = SIZES | sizes | {"M": M}
                check_guidance(strategy, table, known)
                with pytest.raises(Unfit, match="array stranger is not what"):
                    check_guidance(strategy, table | {"stranger": np.zeros(3)}, known)
