"""The zoo's text models: padding, order, and training in both executors."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import fedkd
from fedkd.data.kinds import KINDS
from fedkd.errors import UserError
from fedkd.models.build import build_model
from fedkd.plan.load import parse_scenario
from fedkd.scenario.schema import ClientGroup

pytestmark = pytest.mark.usefixtures("no_report")

MODELS = ("bag", "textcnn", "gru", "tiny-transformer")
LENGTH = 12


def build(name: str, length: int = LENGTH, **args):
    group = ClientGroup(model=name, args={"vocabulary": 50} | args)
    return build_model(group, (length,), 3, seed=0, kind=KINDS["text"]).double().eval()


def texts(count: int = 8, length: int = LENGTH) -> torch.Tensor:
    """Token ids with texts of all lengths, the first one of none."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(1, 50, (count, length), generator=draw)
    return x * (torch.arange(length) < torch.arange(count)[:, None] * length // (count - 1))


@pytest.mark.parametrize("name", MODELS)
def test_padding_after_a_text_changes_no_logit(name):
    model, x = build(name), texts()
    short = x[:, : LENGTH // 2] * (x[:, LENGTH // 2] == 0)[:, None]
    padded = torch.cat([short, torch.zeros_like(short)], dim=1)
    torch.testing.assert_close(model(short), model(padded), rtol=0, atol=1e-12)
    assert torch.isfinite(model(x)).all()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_finite_for_texts_without_tokens(name):
    model = build(name)
    model(torch.zeros(2, LENGTH, dtype=torch.long)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", MODELS)
def test_only_the_bag_ignores_order(name):
    model, x = build(name), texts()[-1:]
    change = (model(x) - model(x.flip(1))).abs().max()
    assert (change < 1e-12) == (name == "bag")


def test_textcnn_takes_the_maximum_over_windows_that_begin_at_tokens():
    model = build("textcnn", sizes=[3], filters=4)
    windows, x = model.body[0], texts()[3]
    with torch.no_grad():
        embedded = windows.embedding(x) * (x != 0)[:, None]
        embedded = torch.cat([embedded, embedded.new_zeros(2, 64)])
        (convolution,) = windows.convolutions
        responses = [
            (convolution.weight * embedded[start : start + 3].T).sum((1, 2)) + convolution.bias
            for start in range(int((x != 0).sum()))
        ]
        wanted = torch.stack(responses).amax(dim=0).relu()
    torch.testing.assert_close(model.features(x[None])[0], wanted)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_an_embedding_per_token_id_of_the_data(name):
    model = build_model(ClientGroup(model=name), (LENGTH,), 3, seed=0, kind=KINDS["text"])
    assert model.body[0].embedding.num_embeddings == 8000
    text = replace(KINDS["text"], vocabulary=77)
    model = build_model(ClientGroup(model=name), (LENGTH,), 3, seed=0, kind=text)
    assert model.body[0].embedding.num_embeddings == 77


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("bag", {"hidden": 0}, "hidden must be ≥ 1, got 0"),
        ("textcnn", {"sizes": []}, r"sizes must be a list of widths ≥ 1, got \[\]"),
        ("tiny-transformer", {"heads": 5}, r"width must be a multiple of heads \(5\), got 64"),
        ("gru", {"dropout": 1.0}, "dropout must be ≥ 0 and < 1"),
        ("gru", {"vocabulary": 1.5}, "vocabulary must be ≥ 1, got 1.5"),
    ],
)
def test_wrong_arguments_are_refused(name, args, message):
    with pytest.raises(UserError, match=message) as caught:
        build(name, **args)
    assert caught.value.key == "clients.args"


@pytest.mark.parametrize("name", MODELS)
def test_models_take_text_alone(name):
    told = rf"'{name}' takes token ids \[L\].*, but the samples are vectors \[5\]; use 'mlp'.* for token ids$"
    with pytest.raises(UserError, match=told):
        build_model(ClientGroup(model=name), (5,), 3, seed=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("executor", ["loop", "vectorised"])
def test_a_text_model_trains_alike_with_fast_training_or_without(name, executor, digits_scenario, tmp_path):
    draw = np.random.default_rng(0)
    x, y = draw.integers(1, 50, (200, LENGTH)), np.arange(200) % 2
    x[:, 6:] *= draw.random((200, 6)) < 0.5
    np.savez(tmp_path / "text.npz", x=x + 50 * y[:, None] * (x > 0), y=y)
    data = {"dataset": "npz", "args": {"path": str(tmp_path / "text.npz"), "kind": "text"}, "clients": 3}
    data |= {"partition": {"scheme": "iid"}, "transfer": {"size": 20}}
    tables = digits_scenario | {"data": data, "clients": [{"model": name}], "rounds": 3}
    finals = []
    for fast in (True, False):
        tables["training"] = {"lr": 0.01, "batch_size": 16, "executor": executor, "fast": fast}
        folder = fedkd.run(parse_scenario(tables), out=tmp_path / str(fast)).folder
        finals.append(json.loads((folder / "summary.json").read_text())["final"])
    assert finals[0] == finals[1]
    assert finals[0]["accuracy_global"]["mean"] > 0.9


@pytest.mark.parametrize("name", ["bag", "textcnn", "tiny-transformer"])
def test_stacked_weights_compute_what_each_model_does(name):
    models, x = [build(name), build(name)], torch.stack([texts(), texts().flip(0)])
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.mul_(0.5)
    weights, _ = torch.func.stack_module_state(models)

    def loss(weights, x):
        return torch.func.functional_call(models[0], weights, x).square().sum()

    found = torch.vmap(torch.func.grad(loss))(weights, x)
    for place, (model, own) in enumerate(zip(models, x, strict=True)):
        model(own).square().sum().backward()
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(found[key][place], parameter.grad, rtol=1e-9, atol=1e-12)
