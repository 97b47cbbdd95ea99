"""build_model: seeds, checks of other people's models, and the count of work."""

from __future__ import annotations

import textwrap

import pytest
import torch
from torch import nn

from fedkd.errors import UserError
from fedkd.models.build import build_model, count_parameters, forward_flops
from fedkd.models.registry import ESTIMATORS, MODEL_KINDS
from fedkd.scenario.schema import ClientGroup

NETWORKS = [name for name, kinds in MODEL_KINDS.items() if "image" in kinds and name not in ESTIMATORS]

PLUGINS = """
    import torch
    from torch import nn

    def linear(input_shape, classes, width_factor=1, *, bias=True):
        return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], classes, bias=bias))

    def needs_width(input_shape, classes, width):
        return linear(input_shape, classes)

    def anything(input_shape, classes, **options):
        return linear(input_shape, classes, **options)

    def starred(*shape_and_classes, bias=True):
        return linear(*shape_and_classes, bias=bias)

    def by_keyword(*, weights=None, num_classes=1000, bias=True):
        return linear((4,), num_classes, bias=bias)

    def seven(input_shape, classes):
        return nn.Linear(input_shape[0], 7)

    def raises(input_shape, classes):
        raise ValueError("no weights today\\nsecond line")

    def not_a_module(input_shape, classes):
        return {"weights": 1}

    def forward_raises(input_shape, classes):
        return nn.Linear(input_shape[0] + 1, classes)

    class Pair(nn.Module):
        def __init__(self, input_shape, classes):
            super().__init__()
            self.layer = nn.Linear(input_shape[0], classes)

        def forward(self, x):
            return self.layer(x), x

    class Constant(nn.Module):
        def __init__(self, input_shape, classes):
            super().__init__()
            self.classes = classes

        def forward(self, x):
            return torch.zeros(len(x), self.classes)

    def double(input_shape, classes):
        return nn.Linear(input_shape[0], classes).double().eval()

    def lazy(input_shape, classes):
        return nn.Sequential(nn.LazyLinear(5), nn.BatchNorm1d(5), nn.Linear(5, classes))

    def one_argument(input_shape):
        return nn.Linear(input_shape[0], 2)

    number = 3
"""


@pytest.fixture
def plug(tmp_path):
    (tmp_path / "my_models_under_test.py").write_text(textwrap.dedent(PLUGINS))

    def build(name: str, weights_seed: int = 1, **args) -> nn.Module:
        group = ClientGroup(model=f"my_models_under_test:{name}", args=args)
        return build_model(group, (4,), 10, seed=weights_seed, plugin_path=[str(tmp_path)])

    return build


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_seed_fixes_the_weights_and_keeps_global_state(name):
    def build(seed):
        return build_model(ClientGroup(model=name), (1, 8, 8), 10, seed=seed)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(weights(first), weights(build(1)))
    assert not torch.equal(weights(first), weights(build(2)))


def test_the_check_keeps_running_statistics_and_mode():
    model = build_model(ClientGroup(model="resnet8", args={"norm": "batch"}), (1, 8, 8), 10, seed=1)
    assert model.training and all(module.training for module in model.modules())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == 0
            assert torch.equal(module.running_mean, torch.zeros_like(module.running_mean))


def test_a_plug_in_factory_receives_its_arguments(plug):
    assert count_parameters(plug("linear")) == 50
    assert count_parameters(plug("linear", bias=False)) == 40
    assert count_parameters(plug("anything", bias=False)) == 40
    assert count_parameters(plug("starred", bias=False)) == 40
    assert count_parameters(plug("needs_width", width=3)) == 50


def test_a_keyword_factory_receives_the_number_of_classes(plug):
    """As torchvision's: none of them downloads weights unless it is asked to."""
    assert count_parameters(plug("by_keyword", bias=False)) == 40
    group = ClientGroup(model="torchvision.models:squeezenet1_1")
    assert build_model(group, (3, 32, 32), 7, seed=1)(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    with pytest.raises(UserError, match="has no argument 'width'"):
        plug("by_keyword", width=3)


def test_a_plug_in_model_becomes_float32_in_training_mode(plug):
    model = plug("double")
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_lazy_layers_are_initialised_from_the_seed(plug):
    assert count_parameters(plug("lazy")) == 4 * 5 + 5 + 2 * 5 + 5 * 10 + 10
    assert torch.equal(weights(plug("lazy")), weights(plug("lazy")))
    assert not torch.equal(weights(plug("lazy")), weights(plug("lazy", weights_seed=2)))


@pytest.mark.parametrize(
    ("name", "args", "key", "message"),
    [
        ("seven", {}, "clients.model", "returns [2, 7] for 2 samples of 10 classes; must be [2, 10]"),
        ("Pair", {}, "clients.model", "returns a tuple for 2 samples of 10 classes; must be [2, 10]"),
        (
            "raises",
            {},
            "clients.model",
            "building 'my_models_under_test:raises' raised ValueError: no weights today",
        ),
        (
            "not_a_module",
            {},
            "clients.model",
            "'my_models_under_test:not_a_module' made a dict without `fit`; a client model is a"
            " torch.nn.Module, or has `fit` and `predict_proba` (or `predict_logits`)",
        ),
        ("Constant", {}, "clients.model", "'my_models_under_test:Constant' has no parameters to train"),
        (
            "number",
            {},
            "clients.model",
            "'my_models_under_test:number' is not callable; must be factory(input_shape, classes, **args)",
        ),
        (
            "linear",
            {"biass": False},
            "clients.args",
            "'my_models_under_test:linear' has no argument 'biass'; it takes width_factor, bias",
        ),
        (
            "linear",
            {"classes": 3},
            "clients.args",
            "'my_models_under_test:linear' has no argument 'classes'; it takes width_factor, bias",
        ),
        (
            "seven",
            {"depth": 3},
            "clients.args",
            "'my_models_under_test:seven' has no argument 'depth'; it takes no arguments",
        ),
        (
            "needs_width",
            {},
            "clients.args",
            "'my_models_under_test:needs_width' needs the argument 'width'; it takes width",
        ),
    ],
)
def test_model_errors_give_one_line(plug, name, args, key, message):
    with pytest.raises(UserError) as caught:
        plug(name, **args)
    assert caught.value.key == key
    assert caught.value.message == message


def test_a_failing_forward_and_a_wrong_signature_name_the_exception(plug):
    with pytest.raises(UserError, match=r"clients.model: fails on an input \[2, 4\] with RuntimeError: "):
        plug("forward_raises")
    with pytest.raises(UserError, match=r"raised TypeError: .*1 positional argument but 2 were given"):
        plug("one_argument")


def test_wrong_zoo_arguments_and_names_are_refused():
    with pytest.raises(UserError, match="'mlp' has no argument 'hiden'; it takes hidden, dropout"):
        build_model(ClientGroup(model="mlp", args={"hiden": [3]}), (4,), 2, seed=1)
    with pytest.raises(UserError, match=r"clients\.model: no model named 'lennet'; did you mean 'lenet'\?"):
        build_model(ClientGroup(model="lennet"), (4,), 2, seed=1)


def test_forward_flops_equal_a_hand_count():
    model = build_model(ClientGroup(model="mlp", args={"hidden": [5]}), (4,), 3, seed=1)
    assert forward_flops(model, (4,)) == 2 * (4 * 5 + 5 * 3)
    lenet = build_model(ClientGroup(model="lenet"), (1, 28, 28), 10, seed=1)
    convolutions = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25
    assert forward_flops(lenet, (1, 28, 28)) == 2 * (convolutions + 400 * 120 + 120 * 84 + 84 * 10)


def test_forward_flops_keep_the_model_and_fall_back_to_parameters():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = torch.get_rng_state()
    forward_flops(model, (4,))
    assert model.training and model[0].training and model[0].num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), before)
    assert forward_flops(model, (5,)) == 2 * count_parameters(model) == 36
