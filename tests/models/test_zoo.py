"""Shapes, sizes and refusals of the zoo."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedkd.errors import UserError
from fedkd.models.build import build_model, count_parameters
from fedkd.models.registry import ESTIMATORS, MODEL_KINDS
from fedkd.scenario.schema import ClientGroup

NETWORKS = [name for name, kinds in MODEL_KINDS.items() if "image" in kinds and name not in ESTIMATORS]

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


def build(name: str, shape: tuple[int, ...], classes: int = 10, **args) -> nn.Module:
    return build_model(ClientGroup(model=name, args=args), shape, classes, seed=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_the_head_applied_to_features(name, shape):
    model = build(name, shape, classes=7).eval()
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    features = model.features(x)
    assert isinstance(model.head, nn.Linear)
    assert features.shape == (5, model.head.in_features)
    assert model(x).shape == (5, 7)
    assert torch.equal(model.head(features), model(x))
    # Nothing collapsed: different samples have different features.
    assert (features[0] - features[1]).abs().max() > 1e-4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_gradient(name, shape):
    model = build(name, shape)
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def conv(fan_in: int, fan_out: int, side: int, bias: bool = True) -> int:
    return fan_in * fan_out * side * side + bias * fan_out


def dense(fan_in: int, fan_out: int) -> int:
    return fan_in * fan_out + fan_out


def test_lenet_has_the_parameters_of_lenet_5():
    tail = dense(120, 84) + dense(84, 10)
    convolutions = conv(1, 6, 5) + conv(6, 16, 5)
    # 28×28 is padded to 32×32: 28, 14, 10, 5 pixels a side, as in the paper.
    assert convolutions + dense(16 * 5 * 5, 120) + tail == 61_706
    assert count_parameters(build("lenet", (1, 28, 28))) == 61_706
    assert count_parameters(build("lenet", (3, 32, 32))) == 61_706 + 2 * 6 * 25
    # 8×8: 8, 4, 4, 2 pixels a side.
    assert count_parameters(build("lenet", (1, 8, 8))) == convolutions + dense(16 * 2 * 2, 120) + tail


def test_cnn_has_the_parameters_the_fedavg_paper_states():
    assert count_parameters(build("cnn", (1, 28, 28))) == 1_663_370
    # Without padding: 24, 12, 8, 4 pixels a side.
    small = conv(1, 32, 5) + conv(32, 64, 5) + dense(64 * 4 * 4, 512) + dense(512, 10)
    assert count_parameters(build("cnn", (1, 28, 28), padding=0)) == small == 582_026


def test_the_default_mlp_is_the_2nn_of_the_fedavg_paper():
    assert count_parameters(build("mlp", (1, 28, 28))) == 199_210
    assert count_parameters(build("mlp", (6,), hidden=[])) == dense(6, 10)
    assert count_parameters(build("mlp", (6,), hidden=[5, 4])) == dense(6, 5) + dense(5, 4) + dense(4, 10)


def test_mlp_without_biases_is_the_network_of_permuted_mnist():
    model = build("mlp", (1, 28, 28), hidden=[100, 100], bias=False)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        "body.1.weight": (100, 784),
        "body.3.weight": (100, 100),
        "head.weight": (10, 100),
    }
    # Nothing shifts the logits: they grow with the input, from 0.
    x = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(2 * x), 2 * model(x))


@pytest.mark.parametrize(("name", "blocks", "layers"), [("resnet8", 1, 8), ("resnet20", 3, 20)])
def test_resnets_have_the_published_number_of_parameters(name, blocks, layers):
    expected = conv(3, 16, 3, bias=False) + 2 * 16
    fan_in = 16
    for width in (16, 32, 64):
        for _ in range(blocks):
            expected += conv(fan_in, width, 3, bias=False) + conv(width, width, 3, bias=False) + 2 * 2 * width
            fan_in = width
    expected += dense(64, 10)
    model = build(name, (3, 32, 32))
    assert count_parameters(model) == expected
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()) == layers
    if name == "resnet20":
        assert expected == 269_722


def test_resnets_use_group_norm_by_default():
    def kinds(model):
        return {type(m) for m in model.modules() if isinstance(m, (nn.GroupNorm, nn.BatchNorm2d))}

    assert kinds(build("resnet8", (1, 8, 8))) == {nn.GroupNorm}
    assert kinds(build("resnet20", (1, 8, 8))) == {nn.GroupNorm}
    groups = [m.num_groups for m in build("resnet20", (1, 8, 8)).modules() if isinstance(m, nn.GroupNorm)]
    assert groups == [2] * 19
    assert kinds(build("resnet8", (1, 8, 8), norm="batch")) == {nn.BatchNorm2d}


def test_group_norm_predictions_ignore_the_other_samples():
    x = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = build("resnet8", (3, 32, 32))
    torch.testing.assert_close(model(x)[:2], model(x[:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lenet", "cnn", "resnet8", "resnet20"])
def test_only_the_mlp_accepts_feature_vectors(name):
    with pytest.raises(
        UserError, match=r"takes images \[C, H, W\], but the samples are vectors \[30\]; use 'mlp'"
    ) as caught:
        build(name, (30,))
    assert caught.value.key == "clients.model"


@pytest.mark.parametrize("name", ["lenet", "cnn"])
def test_images_too_small_are_refused_and_the_smallest_work(name):
    with pytest.raises(UserError, match="3×9"):
        build(name, (1, 3, 9))
    assert build(name, (1, 4, 4))(torch.zeros(2, 1, 4, 4)).shape == (2, 10)


@pytest.mark.parametrize("name", ["lenet", "cnn", "resnet8", "mlp"])
def test_oblong_images_are_accepted(name):
    for shape in [(1, 5, 11), (2, 33, 20), (3, 64, 48), (1, 17, 17), (1, 31, 64)]:
        assert build(name, shape)(torch.zeros(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("mlp", {"hidden": [0]}, "widths ≥ 1"),
        ("mlp", {"hidden": 200}, "widths ≥ 1"),
        ("mlp", {"hidden": "ab"}, "widths ≥ 1"),
        ("mlp", {"bias": 0}, "bias must be true or false, got 0"),
        ("mlp", {"dropout": 1.0}, "dropout must be ≥ 0 and < 1, got 1.0"),
        ("cnn", {"dropout": "no"}, "dropout must be ≥ 0 and < 1, got 'no'"),
        ("cnn", {"padding": 3}, "padding must be 0, 1 or 2, got 3"),
        ("resnet8", {"norm": "layer"}, "norm must be 'group' or 'batch', got 'layer'"),
    ],
)
def test_invalid_arguments_are_refused(name, args, message):
    with pytest.raises(UserError, match=message) as caught:
        build(name, (1, 28, 28), **args)
    assert caught.value.key == "clients.args"


def test_dropout_acts_in_training_only():
    x = torch.ones(4, 1, 8, 8)
    for name in ("mlp", "cnn"):
        model = build(name, (1, 8, 8), dropout=0.5)
        assert not torch.equal(model(x)[0], model(x)[1])
        model.eval()
        assert torch.equal(model(x), model(x))


def test_pooling_before_the_relu_changes_nothing():
    x = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    pool, relu = nn.MaxPool2d(2), nn.ReLU()
    assert torch.equal(pool(relu(x)), relu(pool(x)))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_projection_lies_between_body_and_head(name):
    plain, projecting = build(name, (1, 8, 8)), build(name, (1, 8, 8), projection=5)
    width = plain.head.in_features
    own = dict(projecting.named_parameters())
    assert own.keys() >= dict(plain.named_parameters()).keys(), "the body's weights keep their names"
    assert projecting.head.in_features == 5 and projecting(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    added = count_parameters(projecting) - count_parameters(plain)
    assert added == dense(width, width) + dense(width, 5) + dense(5, 10) - dense(width, 10)


@pytest.mark.parametrize("projection", [-1, 2.5, True, "wide"])
def test_a_projection_needs_a_width(projection):
    with pytest.raises(UserError, match="projection must be ≥ 0"):
        build("mlp", (1, 8, 8), projection=projection)
