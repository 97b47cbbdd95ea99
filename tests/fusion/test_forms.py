"""Uploads of every strategy fit, and one spoiled array of them is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from rounds import guidance_for
from test_every_strategy import FUSING, Round, draw

from fedkd.errors import UserError
from fedkd.fusion.distillation.fedmd import FedMD
from fedkd.fusion.forms import (
    FORMS,
    InvalidUpload,
    check_guidance,
    check_upload,
    find_deviating_uploads,
    required,
    upload_sizes,
)
from fedkd.fusion.kinds import Kind
from fedkd.fusion.registry import STRATEGIES, make_strategy
from fedkd.fusion.strategy import FusionStrategy, Guidance
from fedkd.fusion.validation import ReceivedGuidance
from fedkd.fusion.views import Network
from fedkd.fusion.weights.weight_exchange import WeightExchange
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
    sizes = SIZES | upload_sizes(strategy, weights, trainable)
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
def test_valid_uploads_pass_and_spoiled_ones_are_refused(name):
    strategy, uploads, sizes = uploads_of(name)
    for arrays in uploads:
        check_upload(strategy, arrays, sizes)
    assert find_deviating_uploads(dict(enumerate(uploads)), strategy) == {}
    kinds = strategy.kinds_of(uploads[0])
    assert Kind.OTHER not in kinds.values()
    for array, values in uploads[0].items():
        shape = strategy.capabilities.shapes.get(array, FORMS[kinds[array]].shape)
        assert shape is not None, "a strategy of fedkd's says what its arrays look like"
        for what, wrong in spoiled(values, kinds[array], shape):
            with pytest.raises(InvalidUpload, match=r"^array "):
                check_upload(strategy, uploads[0] | {array: wrong}, sizes)
                pytest.fail(f"{array} passed: {what}")
    for array in required(strategy):
        with pytest.raises(InvalidUpload, match=f"array {array} is missing"):
            check_upload(strategy, {n: v for n, v in uploads[0].items() if n != array}, sizes)


def altered(values: np.ndarray, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield arrays that may fit by themselves, and not the rest of the upload."""
    if values.dtype.kind in "iu" and values.size:
        yield np.zeros_like(values)
        yield np.full_like(values, np.iinfo(values.dtype).max)
        yield np.ones_like(values) * values.dtype.type(255 if values.dtype.kind == "u" else -1)
        yield generator.integers(0, 4, values.shape).astype(values.dtype)
    if values.dtype.kind == "f":
        yield values.astype(np.float64)
    for axis in range(values.ndim):
        shape = [1 if place == axis else size for place, size in enumerate(values.shape)]
        yield np.concatenate([values, np.zeros(shape, values.dtype)], axis)
        for fewer in {0, max(values.shape[axis] - 1, 0)}:
            yield values.take(range(fewer), axis)


@pytest.mark.parametrize("rounds", [0, 1])
@pytest.mark.parametrize("name", FUSING)
def test_accepted_uploads_can_be_fused(name, rounds):
    """Arrays of one upload that fit one by one are refused, or fused; they end in no exception."""
    strategy, _, sizes = uploads_of(name)
    generator = np.random.default_rng(0)

    def begun() -> tuple[Round, list[dict[str, np.ndarray]]]:
        round = Round(strategy, draw((CLIENTS, M, C), seed=3))
        for _ in range(rounds):
            guidance = round.fuse()
            for row, client in enumerate(round.clients):
                if (arrays := guidance_for(row, guidance)) and not strategy.capabilities.uses_local_loss:
                    client.learn(strategy, arrays)
        return round, round.uploads()

    round, sound = begun()
    network = Network.like(round.clients[0].weights(), round.clients[0].trainable())
    fused = 0
    for array in sound[0]:
        for wrong in altered(sound[0][array], generator):
            round, uploads = begun()
            uploads[0] = uploads[0] | {array: wrong}
            sizes["M"] = M if round.clients[0].request is None else len(round.clients[0].request)
            try:
                check_upload(strategy, uploads[0], sizes, network)
            except InvalidUpload:
                continue
            if find_deviating_uploads(dict(enumerate(uploads)), strategy):
                continue
            try:
                strategy.fuse(round.knowledge(uploads), round.memory)
                fused += 1
            except UserError as error:  # clients that differ, told in the scenario's words
                assert error.key == "clients.model"
    assert fused


PLAIN = Network({"weight": np.zeros((5, 4), np.float32), "bias": np.zeros(5, np.float32)}, ("weight", "bias"))
DEEP = Network(
    {"body": np.zeros((3, 4), np.float32), "head.weight": np.zeros((5, 3), np.float32)},
    ("body", "head.weight"),
)


def refusal(name: str, upload: dict[str, np.ndarray], network: Network | None = None) -> str | None:
    return make_strategy(name, {}).misfit(upload, SIZES, network)


def test_arrays_that_do_not_fit_together_are_named():
    logits, none = np.zeros((M, C), np.float32), np.zeros((0, C), np.float32)
    for initial in (logits, none):
        assert refusal("dlf", {"logits": logits, "initial": initial}) is None
    assert refusal("dlf", {"logits": logits, "initial": logits[1:]}) == (
        "array initial has 6 rows, must have 7 or 0"
    )
    change = {"ranks": np.array([1, -1], np.int32), "factors": np.zeros(15, np.float32)}
    assert refusal("fedkd_wu", change, PLAIN) is None and refusal("fedkd_wu", change) is None
    assert refusal("fedkd_wu", change | {"factors": np.zeros(14, np.float32)}, PLAIN) == (
        "array factors has 14 numbers, must have 15 of these ranks"
    )
    assert refusal("fedkd_wu", change | {"ranks": np.array([1], np.int32)}, PLAIN) == (
        "array ranks has 1 numbers, must have 2"
    )


@pytest.mark.parametrize(
    ("spoiled", "told"),
    [
        ({}, None),
        ({"asked": [1, 0, 0, 0, 0, 0, 0, 1]}, "array asked has bits of more than 7 transfer samples"),
        ({"asked": [1, 0, 0, 0, 0, 0, 1, 0]}, "array between has 1 rows, must have 2: one a bit of asked"),
        ({"asked": [0] * 8, "between": 0}, "array between has 0 rows, must have 1"),
        ({"about": 9}, "array about tells 9 classes, must tell 5"),
    ],
)
def test_message_questions_match_their_bits(spoiled, told):
    wanted = {"asked": [1, 0, 0, 0, 0, 0, 0, 0], "between": 1, "about": C} | spoiled
    upload = {
        "asked": np.packbits(np.array(wanted["asked"], np.uint8)),
        "between": np.zeros((wanted["between"], 2), np.uint8),
        "about": np.array([wanted["about"], 0], np.uint32),
    }
    assert refusal("message", upload) == told


def test_answers_to_a_different_number_of_questions_are_refused():
    strategy, _, _ = uploads_of("message")
    round = Round(strategy, draw((CLIENTS, M, C), seed=3))
    guidance = round.fuse()
    for row, client in enumerate(round.clients):
        client.learn(strategy, guidance_for(row, guidance))
    uploads = round.uploads()
    assert len(uploads[0]["classes"]) > 1
    uploads[0] |= {name: uploads[0][name][1:] for name in ("classes", "shares")}
    weights = strategy.fuse(round.knowledge(uploads), round.memory).weights
    assert weights is not None and not weights[1:, 0].any()


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("parts", np.zeros(3, np.float32), "array parts has 3 numbers, must have 2"),
        ("base", np.zeros(4, np.float32), "array base has 4 numbers, must have 8"),
        ("units", np.zeros(2, np.uint8), "array units has 2 bytes, must have 1"),
        ("part_bits", np.zeros((1, 1), np.uint8), "array part_bits has 1 bytes, must have 2"),
        ("part_bits", np.array([[0, 3]], np.uint8), "array part_bits has bits of more than 12 weights"),
    ],
)
def test_fedweit_bits_match_the_count_of_numbers(name, wrong, told):
    upload = {
        "base": np.zeros(8, np.float32),
        "units": np.packbits(np.array([1, 0, 1], np.uint8)),
        "parts": np.zeros(2, np.float32),
        "part_bits": np.array([[9, 0]], np.uint8),
        "tasks": np.zeros(1, np.int32),
    }
    assert refusal("fedweit", upload, DEEP) is None and refusal("fedweit", upload) is None
    assert refusal("fedweit", upload | {name: wrong}, DEEP) == told


def test_masters_sends_no_accuracy_without_held_out_samples():
    assert required(make_strategy("masters", {"held_out_share": 0.0})) == {"logits"}
    assert required(make_strategy("masters", {})) == {"logits", "accuracy"}


def test_infinite_values_count_as_diverged_training():
    with pytest.raises(InvalidUpload) as refused:
        check_upload(FedMD(), {"logits": np.full((M, C), np.nan, np.float32)}, SIZES)
    assert refused.value.diverged and str(refused.value) == (
        "array logits has values that are not numbers (NaN or infinite)"
    )
    with pytest.raises(InvalidUpload) as refused:
        check_upload(FedMD(), {"logits": np.zeros((C, M), np.float32)}, SIZES)
    assert not refused.value.diverged
    assert str(refused.value) == "array logits has shape [5, 7], must be [7, 5]"


def test_the_majority_decides_unknown_sizes():
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
    found = {client: str(misfit) for client, misfit in find_deviating_uploads(sent, FedMD()).items()}
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


def test_undeclared_uploads_are_not_checked():
    assert required(Sparing()) == set()
    check_upload(Sparing(), {"sure": np.ones((3, 2, 1))}, SIZES)
    with pytest.raises(InvalidUpload, match="array sure has values that are not numbers"):
        check_upload(Sparing(), {"sure": np.array([np.inf])}, SIZES)
    assert required(FedMD()) == {"logits"}
    assert required(make_strategy("knfu", {"distribution": "shared"})) == {"logits", "label_counts"}
    assert required(WeightExchange("flwr:FedAvg")) == set(), "the names are the model's"


@pytest.mark.parametrize("name", FUSING)
def test_guidance_fits_the_expectations_of_clients(name):
    """Clients of a deployed federation refuse what their strategy does not send."""
    strategy, _, sizes = uploads_of(name)
    round = Round(strategy, draw((CLIENTS, M, C), seed=3))
    for _ in range(2):
        knowledge = round.knowledge()
        guidance = strategy.fuse(knowledge, round.memory)
        round.memory = guidance.memory
        for table in tables_of(guidance, knowledge)[0].values():
            if table and not strategy.capabilities.brings_model:
                known = SIZES | sizes | {"M": M}
                check_guidance(strategy, table, known)
                with pytest.raises(InvalidUpload, match="array stranger is unknown to"):
                    check_guidance(strategy, table | {"stranger": np.zeros(3)}, known)


@pytest.mark.parametrize("name", FUSING)
def test_guidance_without_an_array_is_refused_by_name(name):
    strategy, _, _ = uploads_of(name)

    def learned() -> tuple[Round, list[dict[str, np.ndarray]]]:
        round = Round(strategy, draw((CLIENTS, M, C), seed=3))
        for _ in range(2):
            guidance = strategy.fuse(round.knowledge(), round.memory)
            round.memory = guidance.memory
            tables = [guidance_for(row, guidance) for row in range(CLIENTS)]
            if not strategy.capabilities.uses_local_loss:
                for client, table in zip(round.clients, tables, strict=True):
                    if table:
                        client.learn(strategy, table)
        return round, tables

    round, tables = learned()
    for array in sorted(tables[0]) if not strategy.capabilities.uses_local_loss else ():
        round, tables = learned()
        fewer = ReceivedGuidance({name: values for name, values in tables[0].items() if name != array})
        try:
            round.clients[0].learn(strategy, fewer)
        except UserError as error:
            assert re.fullmatch(r"guidance is refused: array \S+ is missing; guidance has .*", str(error))
        except KeyError as error:  # `apply` itself, where there are no targets at all
            assert array == "targets" and "guidance without targets" in str(error)
