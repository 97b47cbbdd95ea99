"""Uploads pass their stages in order, and the server undoes them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fedkd
from fedkd.clients.factory import ClientFactory
from fedkd.clients.poison import Poison
from fedkd.clients.upload.stages import Finite, Poisoning, Precision, decode_upload, encode, upload_stages
from fedkd.data.federated import load_federated_data
from fedkd.errors import TrainingDiverged
from fedkd.fusion.kinds import Kind
from fedkd.fusion.weights.weight_exchange import WeightExchange
from fedkd.plan.load import parse_plan
from fedkd.randomness import numpy_generator
from fedkd.scenario.schema import Fusion

pytestmark = pytest.mark.usefixtures("no_report")

RANDOM = Poison("random", np.full(4, 0.25))


def generators(purpose: str) -> np.random.Generator:
    return numpy_generator(0, purpose)


def model(seed: int = 0) -> dict[str, np.ndarray]:
    """Return the weights of a model with a counter, as WeightExchange uploads them."""
    weight = np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32)
    return {"weight": weight, "batches": np.array(70_001, np.int64)}


def kinds_of_model() -> dict[str, Kind]:
    return WeightExchange("flwr:FedAvg").kinds_of(model())


def test_upload_stages_are_poison_then_check_then_precision():
    honest, hostile = (
        upload_stages(Fusion(upload_dtype="float16")),
        upload_stages(Fusion(upload_dtype="float16"), RANDOM),
    )
    assert [type(stage) for stage in honest] == [Finite, Precision]
    assert [type(stage) for stage in hostile] == [Poisoning, Finite, Precision]


def test_poisoned_uploads_are_rounded_like_honest_ones():
    logits, kinds = np.ones((6, 4), np.float32), {"logits": Kind.TRANSFER_LOGITS}
    fake = encode(
        upload_stages(Fusion(upload_dtype="float32"), RANDOM), {"logits": logits}, kinds, generators
    )["logits"]
    sent = encode(
        upload_stages(Fusion(upload_dtype="float16"), RANDOM), {"logits": logits}, kinds, generators
    )["logits"]
    assert sent.dtype == np.float16 and not np.array_equal(fake, logits)
    assert_array_equal(sent, fake.astype(np.float16))


def test_poisoning_hides_a_diverged_training():
    """It sends something else than what it knows, so what it knows is not looked at."""
    diverged, kinds = {"logits": np.full((6, 4), np.nan, np.float32)}, {"logits": Kind.TRANSFER_LOGITS}
    liar = Poison("imitation", np.full(4, 0.25))
    sent = encode(upload_stages(Fusion(upload_dtype="float32"), liar), diverged, kinds, generators)
    assert np.isfinite(sent["logits"]).all()


@pytest.mark.parametrize("kind", [Kind.TRANSFER_LOGITS, Kind.WEIGHTS, Kind.FEATURES, Kind.OTHER])
def test_nan_values_are_not_uploaded(kind):
    arrays = {"good": np.ones(3), "bad": np.array([0.0, np.nan])}
    with pytest.raises(TrainingDiverged, match=r"^bad are not numbers.*lower training\.lr"):
        encode(upload_stages(Fusion(upload_dtype="float32")), arrays, dict.fromkeys(arrays, kind), generators)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e15), ("float16", 65504.0)])
def test_infinite_predictions_are_uploaded_as_large_numbers(dtype, bound):
    arrays, kinds = {"z": np.array([np.inf, -np.inf, 2.0], np.float32)}, {"z": Kind.SAMPLE_LOGITS}
    sent = encode(upload_stages(Fusion(upload_dtype=dtype)), arrays, kinds, generators)["z"]
    assert_array_equal(sent, np.array([bound, -bound, 2.0], dtype))


def test_infinite_weights_are_not_uploaded():
    arrays = {"weight": np.array([1.0, -np.inf])}
    with pytest.raises(TrainingDiverged, match="weight are beyond ±1e"):
        encode(upload_stages(Fusion(upload_dtype="float32")), arrays, {"weight": Kind.WEIGHTS}, generators)


def test_weights_travel_in_float16_and_arrive_in_float32():
    stages, kinds = upload_stages(Fusion(upload_dtype="float16")), kinds_of_model()
    sent = encode(stages, model(), kinds, generators)
    assert (sent["weight"].dtype, sent["batches"].dtype) == (np.float16, np.int64)
    received = decode_upload(stages, sent, kinds)
    assert received["weight"].dtype == np.float32
    assert_array_equal(received["weight"], model()["weight"].astype(np.float16).astype(np.float32))
    assert_array_equal(received["batches"], 70_001)


@pytest.mark.parametrize("kind", [Kind.TRANSFER_LOGITS, Kind.SAMPLE_LOGITS, Kind.LABEL_LOGITS])
def test_predictions_arrive_as_they_were_sent(kind):
    stages = upload_stages(Fusion(upload_dtype="float16"))
    sent = encode(stages, {"z": np.full((2, 2), 0.1)}, {"z": kind}, generators)
    assert decode_upload(stages, sent, {"z": kind})["z"].dtype == np.float16


@pytest.mark.parametrize("kind", [Kind.COUNTERS, Kind.INDICES, Kind.LABEL_COUNTS, Kind.CONSTANT])
@pytest.mark.parametrize("poison", [None, RANDOM, Poison("imitation", RANDOM.victim)])
def test_integers_keep_their_values(kind, poison):
    values = np.array([3, 70_001, 12], np.int32)
    stages = upload_stages(Fusion(upload_dtype="float16"), poison)
    sent = decode_upload(stages, encode(stages, {"a": values}, {"a": kind}, generators), {"a": kind})["a"]
    assert sent.dtype == np.int32
    assert_array_equal(sent, values)


def test_features_keep_their_precision():
    values = np.array([0.1], np.float32)
    sent = encode(
        upload_stages(Fusion(upload_dtype="float16")), {"a": values}, {"a": Kind.FEATURES}, generators
    )
    assert_array_equal(sent["a"], values)


def test_upload_stages_are_undone_in_reverse():
    class Adding:
        def __init__(self, word: str) -> None:
            self.word = word

        def encode(self, arrays, kinds, generators):
            return {name + self.word: values for name, values in arrays.items()}

        def decode(self, arrays, kinds):
            assert all(name.endswith(self.word) for name in arrays)
            return {name.removesuffix(self.word): values for name, values in arrays.items()}

    stages = (Adding("1"), Adding("2"))
    sent = encode(stages, {"a": np.ones(1)}, {}, generators)
    assert list(sent) == ["a12"]
    assert list(decode_upload(stages, sent, {})) == ["a"]


def test_poisoned_weights_are_random_and_fit_the_model():
    stages = upload_stages(Fusion(upload_dtype="float32"), RANDOM)
    sent = encode(stages, model(), kinds_of_model(), generators)
    assert sent["weight"].shape == (5, 3) and sent["weight"].dtype == np.float32
    assert not np.isclose(sent["weight"], model()["weight"]).any()
    assert_array_equal(sent["batches"], 70_001)
    again = encode(stages, model(1), kinds_of_model(), generators)
    assert abs(np.corrcoef(sent["weight"].ravel(), again["weight"].ravel())[0, 1]) > 0.999, "of its own draws"


# With clients and servers -------------------------------------------------------------------------------


@pytest.fixture
def averaged(digits_scenario) -> dict:
    """Weights averaged, with a counter among them: that of batch normalisation."""
    data = digits_scenario["data"] | {"test_size": 100}
    model = {"model": "resnet8", "args": {"norm": "batch"}}
    return digits_scenario | {"data": data, "clients": [model], "fusion": {"strategy": "flwr:FedAvg"}}


def test_weights_pass_the_same_upload_stages(averaged):
    plan = parse_plan(averaged | {"fusion": {"strategy": "flwr:FedAvg", "upload_dtype": "float16"}})
    client = ClientFactory(plan, load_federated_data(plan.scenario)).build(0)
    client.complete(client.train(1))
    own, sent = client.weights(), client.upload(1)
    assert list(sent) == list(own)
    for name, values in own.items():
        floating = np.issubdtype(values.dtype, np.floating)
        assert sent[name].dtype == (np.float16 if floating else values.dtype)
        assert_array_equal(sent[name], values.astype(np.float16) if floating else values)
    assert any(not np.issubdtype(values.dtype, np.floating) for values in sent.values())


def summary_and_accuracy(tables: dict, folder) -> tuple[dict, float]:
    result = fedkd.run(parse_plan(tables), out=folder)
    assert all(np.isfinite(row["value"]) for row in result.metrics())
    return result.summary, result.summary["final"]["accuracy_global"]["mean"]


def test_poisoned_weights_reach_flower_strategies(averaged, tmp_path):
    changes = {"clients": [{"model": "mlp", "args": {"hidden": [16]}}], "rounds": 3}
    _, clean = summary_and_accuracy(averaged | changes, tmp_path / "clean")
    wrong = {"faults": {"poisoned": 0.5, "poison": "random"}}
    _, harmed = summary_and_accuracy(averaged | changes | wrong, tmp_path / "harmed")
    assert clean > 0.4 and harmed < clean - 0.2


def test_half_precision_halves_the_upload_bytes_of_weights(averaged, tmp_path):
    changes = {"clients": [{"model": "mlp", "args": {"hidden": [16]}}]}
    half = {"fusion": {"strategy": "flwr:FedAvg", "upload_dtype": "float16"}}
    full, accuracy = summary_and_accuracy(averaged | changes, tmp_path / "full")
    less, nearly = summary_and_accuracy(averaged | changes | half, tmp_path / "half")
    assert less["final"]["bytes_up"] * 2 == full["final"]["bytes_up"]
    assert less["final"]["bytes_down"] == full["final"]["bytes_down"]
    assert abs(accuracy - nearly) < 0.1
