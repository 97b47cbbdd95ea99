"""Kinds of samples: inference, names, and what sources and models do with them."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.data.dataset import dataset_from_arrays
from fedkd.data.kinds import KINDS, inferred_kind
from fedkd.data.load import load_data
from fedkd.data.shares.share import share_of_client
from fedkd.data.shares.share_file import read_share, write_share
from fedkd.errors import UserError
from fedkd.models.build import build_model
from fedkd.models.registry import MODELS
from fedkd.plan.load import parse_scenario
from fedkd.scenario.schema import ClientGroup

Y = np.arange(40) % 2
SHAPES = {
    "image": (3, 4, 4),
    "vector": (7,),
    "series": (2, 9),
    "text": (5,),
    "graph": (3, 5),
    "triple": (2,),
}


def samples(kind: str) -> np.ndarray:
    draw = np.random.default_rng(0)
    if KINDS[kind].integers:
        return draw.integers(0, 50, (40, *SHAPES[kind]))
    return draw.normal(3.0, 2.0, (40, *SHAPES[kind])).astype(np.float32)


def npz(digits_scenario, tmp_path, kind: str | None, x: np.ndarray) -> dict:
    np.savez(tmp_path / "own.npz", train_x=x, train_y=Y, test_x=x, test_y=Y)
    args = {"path": str(tmp_path / "own.npz")} | ({} if kind is None else {"kind": kind})
    data = {"dataset": "npz", "args": args, "clients": 2, "partition": {"scheme": "iid"}}
    return digits_scenario | {"data": data | {"transfer": {"size": 8}}}


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [
        ((3, 8, 8), np.uint8, "image"),
        ((5,), np.float32, "vector"),
        ((5,), np.uint8, "vector"),
        ((5,), np.int32, "text"),
    ],
)
def test_a_kind_is_inferred_from_shape_and_type(shape, dtype, kind):
    assert inferred_kind(shape, dtype) == KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_may_name_any_kind(kind, digits_scenario, tmp_path):
    x = samples(kind)
    data = load_data(parse_scenario(npz(digits_scenario, tmp_path, kind, x)))
    assert data.kind == KINDS[kind] and data.x.dtype == data.kind.dtype and data.input_shape == SHAPES[kind]
    if data.kind.statistics:
        assert abs(data.test_x.mean()) < 1e-5 and abs(data.test_x.std() - 1) < 0.01
    else:
        assert np.array_equal(data.test_x, x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_keeps_its_kind(kind, digits_scenario, tmp_path):
    data = load_data(parse_scenario(npz(digits_scenario, tmp_path, kind, samples(kind))))
    write_share(tmp_path, share_of_client(data, 0))
    assert read_share(tmp_path).data.kind == data.kind
    assert ('"kind"' in (tmp_path / "share.json").read_text()) == (kind in ("graph", "triple"))


@pytest.mark.parametrize(
    ("kind", "x", "message"),
    [
        ("txt", samples("text"), "unknown kind of samples 'txt'; did you mean 'text'"),
        ("text", samples("vector"), "must hold token ids, integers ≥ 0, got float32"),
        ("text", samples("text") - 9, "must hold token ids, integers ≥ 0, got -9"),
        ("triple", samples("text"), r"must hold triples \[2\], got samples \[5\]"),
        ("graph", samples("series")[..., :2], r"must hold graphs \[V, F\+V\], got samples \[2, 2\]"),
        ("image", samples("vector"), r"must hold images \[C, H, W\], got samples \[7\]"),
    ],
)
def test_samples_of_another_kind_are_refused(kind, x, message):
    with pytest.raises(UserError, match=message):
        dataset_from_arrays("own", x, Y, x, Y, kind=kind)


def test_a_plug_in_names_its_kind_in_its_result_or_in_args(digits_scenario, tmp_path):
    (tmp_path / "own_kinds.py").write_text(
        "import numpy as np\n"
        "X, Y = np.arange(80).reshape(40, 2), np.arange(40) % 2\n"
        "def told(): return dict(train_x=X, train_y=Y, test_x=X, test_y=Y, kind='triple')\n"
        "def untold(): return X, Y, X, Y\n"
        "def own(kind): return X[:, :1], Y, X[:, :1], Y\n"
    )

    def kind(function: str, **args) -> str:
        tables = npz(digits_scenario, tmp_path, None, samples("vector"))
        tables["data"] |= {"dataset": f"own_kinds:{function}", "args": args}
        return load_data(parse_scenario(tables | {"plugin_path": [str(tmp_path)]})).kind.name

    assert kind("told") == "triple"
    assert kind("untold") == kind("own", kind="text") == "vector"
    assert kind("untold", kind="text") == "text"


def test_a_model_is_refused_before_the_run_if_it_takes_other_kinds(monkeypatch):
    told = r"'cnn' takes images \[C, H, W\], but the samples are series \[2, 9\]; use 'mlp'"
    with pytest.raises(UserError, match=told):
        build_model(ClientGroup(model="cnn"), (2, 9), 2, seed=0)
    told = r"'mlp' takes .*, but the samples are graphs \[3, 5\]; use a model of yours"
    with pytest.raises(UserError, match=told):
        build_model(ClientGroup(model="mlp"), (3, 5), 2, seed=0, kind=KINDS["graph"])

    def reader(shape, classes):
        raise AssertionError

    reader.kinds = ("text",)
    monkeypatch.setitem(MODELS._registered, "reader", reader)
    with pytest.raises(UserError, match=r"'reader' takes token ids \[L\], but the samples are vectors \[7\]"):
        build_model(ClientGroup(model="reader"), (7,), 2, seed=0)
