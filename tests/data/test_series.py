"""Series: generated waveforms, and the files of the UCR and UEA archives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fedkd
from fedkd.data.kinds import KINDS
from fedkd.data.registry import load_dataset
from fedkd.data.request import SourceRequest
from fedkd.errors import UserError
from fedkd.models.build import build_model
from fedkd.scenario.schema import ClientGroup

pytestmark = pytest.mark.usefixtures("no_report")

HEADER = "@problemName tiny\n@timeStamps false\n@univariate false\n@classLabel true b a\n@data\n"
CASES = "1,2,3:4,5,6:b\n1,2:-1.5,0:a\n0:1:b\n3,2,1:1e1,0,0:a\n"


def load(name: str, folder: Path, clients: int = 3, regression: bool = False, **args):
    return load_dataset(SourceRequest(name, folder, args, clients=clients, regression=regression))


def bayes(x: np.ndarray) -> np.ndarray:
    """Return the most probable class of series [n, 21]: u is integrated out on a grid."""
    i = np.arange(1, 22)
    h = [np.maximum(6.0 - np.abs(i - centre), 0.0) for centre in (11, 15, 7)]
    scores = []
    for g, k in ((h[0], h[1]), (h[0], h[2]), (h[1], h[2])):
        likelihood = 0.0
        for u in np.linspace(0.0, 1.0, 41):
            likelihood = likelihood + np.exp(-0.5 * ((x - u * g - (1 - u) * k) ** 2).sum(axis=1))
        scores.append(likelihood)
    return np.argmax(scores, axis=0)


def test_the_bayes_rule_of_waveforms_has_the_accuracy_of_the_book(tmp_path):
    found = load("waveform", tmp_path, test=6000)
    assert found.kind.name == "series" and found.train_x.shape == (300, 1, 21)
    accuracy = (bayes(found.test_x[:, 0].astype(np.float64)) == found.test_y).mean()
    assert abs(accuracy - 0.86) < 0.02  # four standard errors of 6,000 samples


def test_a_client_of_waveform_has_its_own_samples_whatever_the_number_of_clients(tmp_path):
    few, many = (load("waveform", tmp_path, clients=n, drift=0.5) for n in (2, 5))
    np.testing.assert_array_equal(few.train_x, many.train_x[:200])
    np.testing.assert_array_equal(many.owners, np.repeat(np.arange(5), 100))
    plain = load("waveform", tmp_path, clients=2)
    ratio = np.polyfit(plain.train_x[:100].ravel(), few.train_x[:100].ravel(), 1)  # scale, and level
    np.testing.assert_allclose(np.polyval(ratio, plain.train_x[:100]), few.train_x[:100], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("key", "value"), [("samples", 1), ("drift", -0.5), ("test", 2), ("length", 3)])
def test_wrong_arguments_of_waveform_are_told(tmp_path, key, value):
    with pytest.raises(UserError, match=f"data.args.{key}"):
        load("waveform", tmp_path, **{key: value})


def test_a_ts_folder_gives_padded_channels_and_sorted_classes(tmp_path):
    (tmp_path / "T_TRAIN.ts").write_text(HEADER + CASES)
    (tmp_path / "T_TEST.ts").write_text("# made\n" + HEADER + "7,8,9,9:1,1,1,1:a\n\n")
    for path in (".", "T_TRAIN.ts"):
        found = load("ts", tmp_path, path=str(tmp_path / path), owners="label")
        assert found.class_names == ("a", "b") and found.kind.name == "series"
        assert found.train_x.shape == (4, 2, 4) and found.train_x.dtype == np.float32
        np.testing.assert_array_equal(found.train_y, [1, 0, 1, 0])
        np.testing.assert_array_equal(found.train_x[1], [[1, 2, 2, 2], [-1.5, 0, 0, 0]])
        np.testing.assert_array_equal(found.test_x[0], [[7, 8, 9, 9], [1, 1, 1, 1]])
        np.testing.assert_array_equal(found.owners, ["b", "a", "b", "a"])


def test_a_single_ts_file_is_split_and_may_hold_targets(tmp_path):
    lines = [f"{n},{n + 1}:{n / 10}" for n in range(20)]
    (tmp_path / "one.ts").write_text("@targetLabel true\n@data\n" + "\n".join(lines))
    found = load("ts", tmp_path, path=str(tmp_path / "one.ts"), regression=True)
    assert len(found.train_x) == 16 and len(found.test_x) == 4
    np.testing.assert_allclose(found.train_y[:, 0], found.train_x[:, 0, 0] / 10, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1,2:a\n", "has no line @data"),
        ("@data\n", "holds no series"),
        ("@timeStamps true\n@data\n(0,1):a\n", "says '@timestamps true'"),
        ("@data\n1,?:a\n2,3:b\n", "line 2: must hold numbers, got '1,\\?'"),
        ("@data\n1,2:a\n1:2:b\n", "line 3: must have 1 channels, got 2"),
        ("@data\n1,2\n", "line 2: must have channels and a label"),
        ("@data\n1,2:a\n3,4:a\n", "has one class only, 'a'"),
        ("@data\n1,nan:a\n3,4:b\n5,6:a\n7,8:b\n9,9:b\n", "must be finite"),
        (b"\xff\xfe", "as UTF-8 text"),
    ],
)
def test_a_damaged_ts_file_is_told_in_one_line(tmp_path, text, told):
    path = tmp_path / "bad.ts"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=told) as error:
        load("ts", tmp_path, path=str(path))
    assert "\n" not in str(error.value)


def test_the_models_of_series_ignore_nothing_but_the_padding_of_means():
    import torch

    x = torch.randn(4, 3, 17, generator=torch.Generator().manual_seed(0))
    for name in ("cnn1d", "gru"):
        model = build_model(ClientGroup(model=name), (3, 17), 5, seed=0, kind=KINDS["series"]).eval()
        assert model(x).shape == (4, 5)
        assert (model(x) - model(x.flip(2))).abs().max() > 1e-4  # order counts
    with pytest.raises(UserError, match="odd widths"):
        build_model(ClientGroup(model="cnn1d", args={"sizes": [2, 5, 3]}), (3, 17), 5, seed=0)
    with pytest.raises(UserError, match="'cnn1d' takes series"):
        build_model(ClientGroup(model="cnn1d"), (8,), 5, seed=0, kind=KINDS["text"])


def test_cnn1d_is_what_numpy_computes():
    import torch

    group = ClientGroup(model="cnn1d", args={"filters": [2], "sizes": [3]})
    model = build_model(group, (2, 5), 3, seed=1, kind=KINDS["series"]).double().eval()
    x = torch.randn(1, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    convolution = model.body[0]
    kernel, bias = convolution.weight.detach().numpy(), convolution.bias.detach().numpy()
    wide = np.pad(x[0].numpy(), ((0, 0), (1, 1)))
    steps = [[(kernel[f] * wide[:, t : t + 3]).sum() + bias[f] for t in range(5)] for f in range(2)]
    means = np.maximum(steps, 0.0).mean(axis=1)
    logits = model.head.weight.detach().numpy() @ means + model.head.bias.detach().numpy()
    np.testing.assert_allclose(model(x).detach().numpy()[0], logits, rtol=0, atol=1e-12)


def test_speakers_of_a_ts_file_are_clients_in_a_run_of_both_models(tmp_path):
    draw = np.random.default_rng(0)
    for end, count in (("TRAIN", 60), ("TEST", 15)):
        lines = [
            ":".join(",".join(f"{v:.3f}" for v in draw.normal(n % 3, 1, 4 + n % 3)) for _ in range(2))
            + f":s{n % 3}"
            for n in range(count)
        ]
        (tmp_path / f"V_{end}.ts").write_text("@classLabel true s0 s1 s2\n@data\n" + "\n".join(lines))
    data = {"dataset": "ts", "args": {"path": str(tmp_path), "owners": "label"}, "clients": 3}
    more = {"partition": {"scheme": "natural"}, "transfer": {"size": 12}}
    scenario = {
        "name": "speakers",
        "rounds": 1,
        "data": data | more,
        "clients": [
            {"model": "gru", "args": {"width": 8}},
            {"model": "cnn1d", "args": {"filters": [8], "sizes": [3]}},
        ],
        "fusion": {"strategy": "knfu"},
        "engine": {"kind": "inline"},
    }
    run = fedkd.run(scenario, out=tmp_path / "run", progress=False)
    assert run.summary["status"] == "done"
