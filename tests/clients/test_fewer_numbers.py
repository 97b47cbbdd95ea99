"""Uploads of fewer predictions or fewer numbers for each."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import digits_tables
from numpy.testing import assert_allclose, assert_array_equal

import fedkd
from fedkd.clients.upload.stages import PREDICTIONS_SENT, decode_upload, encode, upload_stages
from fedkd.errors import UserError
from fedkd.fusion.distillation.confidence import normalised_certainty
from fedkd.fusion.kinds import Kind
from fedkd.fusion.math.probabilities import softmax
from fedkd.plan.load import parse_plan
from fedkd.randomness import numpy_generator
from fedkd.scenario.schema import Filter, Fusion

pytestmark = pytest.mark.usefixtures("no_report")

LOGITS = numpy_generator(0, "test fewer numbers").normal(0, 2, (21, 6)).astype(np.float32)
KINDS = {"logits": Kind.TRANSFER_LOGITS, "counts": Kind.LABEL_COUNTS}
COUNTS = np.arange(6)


def there_and_back(fusion: Fusion, logits=LOGITS):
    stages = upload_stages(fusion)
    arrays = {"logits": logits, "counts": COUNTS}
    sent = encode(stages, arrays, KINDS, lambda purpose: numpy_generator(0, purpose))
    return sent, decode_upload(stages, sent, {name: KINDS.get(name, Kind.OTHER) for name in sent})


@pytest.mark.parametrize("samples", [1, 7, 8, 21])
@pytest.mark.parametrize(
    "wanted", [{"threshold": 0.5}, {"quantile": 0.5}, {"threshold": 0.0}, {"threshold": 1.0}]
)
def test_a_client_sends_confident_predictions_and_one_bit_per_sample(samples, wanted) -> None:
    logits = LOGITS[:samples]
    sent, received = there_and_back(Fusion(filters=[Filter(by="confidence", at="upload", **wanted)]), logits)
    sure = normalised_certainty(softmax(logits))
    keep = sure >= wanted.get("threshold", np.quantile(sure, 0.5))
    assert_array_equal(received[PREDICTIONS_SENT], keep)
    assert_array_equal(received["logits"], np.where(keep[:, None], logits, 0))
    assert sent["logits"].nbytes + sent[PREDICTIONS_SENT].nbytes == 24 * keep.sum() + (samples + 7) // 8 + 1
    assert_array_equal(received["counts"], COUNTS)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("number", [1, 2, 5, 6, 9])
def test_the_top_classes_arrive_and_the_rest_share_evenly(dtype, number) -> None:
    sent, received = there_and_back(Fusion(upload_top=number, upload_dtype=dtype))
    if number >= 6:
        assert_array_equal(received["logits"], LOGITS.astype(dtype))
        return
    q, order = softmax(LOGITS.astype(dtype)).astype(np.float64), np.argsort(-LOGITS, axis=1)
    expected = q.copy()
    for row, best in zip(expected, order, strict=True):
        row[best[number:]] = row[best[number:]].mean()
    tolerance = 1e-6 if dtype == "float32" else 2e-3
    assert received["logits"].dtype == dtype and set(received) == {"logits", "counts"}
    assert_allclose(softmax(received["logits"]), expected, rtol=0, atol=tolerance)
    assert sum(array.nbytes for array in sent.values()) == 21 * number * (1 + int(dtype[5:]) // 8) + 4 + 48


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_infinite_predictions_keep_their_class() -> None:
    logits = np.array([[np.inf, 0, 0], [-np.inf, -np.inf, 0], [7e4, 7e4, 0]], dtype=np.float32)
    _, received = there_and_back(Fusion(upload_top=2, upload_dtype="float16"), logits)
    assert_allclose(softmax(received["logits"]), [[1, 0, 0], [0, 0, 1], [0.5, 0.5, 0]], atol=1e-3)


def test_filtering_on_clients_equals_filtering_on_the_server(tmp_path) -> None:
    results = {}
    for at in ("upload", "fusion"):
        fusion = {"strategy": "knfu", "filters": [{"by": "confidence", "threshold": 0.4, "at": at}]}
        results[at] = fedkd.run(digits_tables() | {"fusion": fusion}, out=tmp_path / at)
    rows = [result.metrics() for result in results.values()]
    assert rows[0] == rows[1]
    heard = [row["value"] for row in rows[0] if row["metric"] == "predictions_heard"]
    assert len(heard) == 2 and 0 < min(heard) <= max(heard) < 1
    up = {at: result.summary["final"]["bytes_up"] for at, result in results.items()}
    assert up["upload"] == pytest.approx(sum(heard) * 4 * 60 * 40 + 2 * 4 * 9) and up["upload"] < up["fusion"]


@pytest.mark.parametrize(
    ("fusion", "key", "message"),
    [
        ({"filters": [{"by": "luck"}]}, "fusion.filters.0.by", "must be"),
        ({"filters": [{"by": "agreement", "threshold": 1.5}]}, "fusion.filters.0.threshold", "1.5"),
        ({"filters": [{"by": "agreement", "quantile": 1.0}]}, "fusion.filters.0.quantile", ""),
        ({"filters": [{"by": "agreement", "theshold": 1}]}, "fusion.filters.0.theshold", "threshold"),
        ({"filters": "agreement"}, "fusion.filters", "list"),
        (
            {"filters": [{"by": "agreement", "threshold": 0.1, "quantile": 0.1}]},
            "fusion.filters.0",
            "got both",
        ),
        ({"filters": [{"by": "agreement", "at": "upload"}]}, "fusion.filters.0", "by = 'confidence'"),
        ({"upload_top": 0}, "fusion.upload_top", "≥ 1"),
    ],
)
def test_wrong_values_are_named(fusion, key, message) -> None:
    with pytest.raises(UserError) as refused:
        parse_plan(digits_tables() | {"fusion": {"strategy": "knfu", **fusion}})
    assert refused.value.key == key and message in str(refused.value)


@pytest.mark.parametrize(
    ("fusion", "key"),
    [
        ({"strategy": "fd", "filters": [{"by": "agreement"}]}, "fusion.filters"),
        ({"strategy": "cfd", "filters": [{"by": "agreement"}]}, "fusion.filters"),
        ({"strategy": "scarlet", "filters": [{"by": "agreement"}]}, "fusion.filters"),
        ({"strategy": "fedhkt", "filters": [{"by": "agreement"}]}, "fusion.filters"),
        ({"strategy": "flwr:FedAvg", "filters": [{"by": "agreement"}]}, "fusion.filters"),
        ({"strategy": "dsfl", "filters": [{"by": "agreement"}, {"by": "relevance"}]}, "fusion.filters.1.by"),
        ({"strategy": "knfu", "per_class": True, "filters": [{"by": "relevance"}]}, "fusion.filters.0.by"),
        ({"strategy": "fedproto", "upload_top": 2}, "fusion.upload_top"),
        ({"strategy": "dsfl", "upload_top": 11}, "fusion.upload_top"),
    ],
)
def test_impossible_filters_are_refused(fusion, key, tmp_path) -> None:
    with pytest.raises(UserError) as refused:
        fedkd.run(digits_tables() | {"fusion": fusion}, out=tmp_path / "run")
    assert refused.value.key == key and not (tmp_path / "run").exists()
