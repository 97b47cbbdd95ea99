"""What a strategy cannot do with a scenario's clients and data is refused before anything runs."""

from __future__ import annotations

import pytest

from fedkd.data.federated import load_federated_data
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.models.build import build_group_models
from fedkd.plan.checks.requirements import check_requirements
from fedkd.plan.load import parse_plan


@pytest.mark.parametrize(
    ("strategy", "poison", "refused"),
    [
        ("flwr:FedAvg", "imitation", True),
        ("flwr:FedAvg", "random", False),
        ("flwr:FedAvg", "flipped", False),
        ("feddf", "imitation", True),
        ("feddf", "random", False),
        ("fml", "imitation", True),
        ("fedkd_wu", "imitation", True),
        ("fedmrl", "imitation", True),
        ("fedgen", "imitation", True),
        ("feddf", "constant", True),
        ("cfd", "constant", False),
        ("fml", "random", False),
        ("fedgkt", "imitation", False),
        ("knfu", "imitation", False),
    ],
)
def test_unsupported_poison_is_refused(strategy, poison, refused, digits_scenario):
    wrong = {"poisoned": 0.25, "poison": poison}
    plan = parse_plan(digits_scenario | {"faults": wrong, "fusion": {"strategy": strategy}})
    data = load_federated_data(plan.scenario)
    models = build_group_models(plan.scenario, data.input_shape, data.classes)
    if not refused:
        check_requirements(plan, data, models)
        return
    with pytest.raises(UserError, match=f"'{poison}' needs clients that upload predictions") as caught:
        check_requirements(plan, data, models)
    assert caught.value.key == "faults.poison"


@pytest.mark.parametrize("strategy", ["scaffold", "pfedme"])
@pytest.mark.parametrize(
    ("training", "key", "message"),
    [
        ({"optimizer": "adam"}, "training.optimizer", "must be 'sgd', got 'adam'"),
        ({"optimizer": "sgd", "momentum": 0.9}, "training.momentum", "must be 0, got 0.9"),
        ({"optimizer": "sgd"}, None, ""),
    ],
)
def test_methods_defined_for_sgd_require_sgd(strategy, training, key, message, digits_scenario):
    tables = digits_scenario | {"clients": [{"model": "mlp"}], "fusion": {"strategy": strategy}}
    plan = parse_plan(tables | {"training": training})
    data = load_federated_data(plan.scenario)
    models = build_group_models(plan.scenario, data.input_shape, data.classes)
    if key is None:
        check_requirements(plan, data, models)
        return
    with pytest.raises(UserError, match=message) as caught:
        check_requirements(plan, data, models)
    assert caught.value.key == key
    assert f"a local step of '{strategy}' is lr times a gradient" in caught.value.message


@pytest.mark.parametrize("strategy", ["cfd", "fedet"])
@pytest.mark.parametrize(
    ("model", "key", "message"),
    [
        ({"server_model": "nope"}, "fusion.server_model", "no model named 'nope'"),
        ({"server_model": "sgd"}, "fusion.server_model", "must be a torch.nn.Module"),
        ({"server_model": "mlp", "server_args": {"deep": 1}}, "fusion.server_args", "deep"),
    ],
)
def test_an_impossible_server_model_is_refused(strategy, model, key, message, digits_scenario):
    plan = parse_plan(digits_scenario | {"fusion": {"strategy": strategy, **model}})
    data = load_federated_data(plan.scenario)
    with pytest.raises(UserError, match=message) as caught:
        check_requirements(plan, data, build_group_models(plan.scenario, data.input_shape, data.classes))
    assert caught.value.key.startswith(key)


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"fusion": {"strategy": "feddf"}}, "fusion.strategy", "'feddf' exchanges weights.*'random-forest'"),
        ({"fusion": {"strategy": "fd"}}, "fusion.strategy", "'fd' trains by gradients"),
        ({"fusion": {"strategy": "fedproto"}}, "fusion.strategy", "'fedproto' .*'random-forest' is not"),
        (
            {"fusion": {"strategy": "lg_fedavg"}},
            "fusion.strategy",
            "'lg_fedavg' exchanges weights, but model",
        ),
    ],
)
def test_models_without_required_parts_are_named(changes, key, message, digits_scenario):
    forest = {"model": "random-forest", "args": {"trees": 2}}
    plan = parse_plan(digits_scenario | {"clients": [forest], "training": {}} | changes)
    data = load_federated_data(plan.scenario)
    with pytest.raises(UserError, match=message) as caught:
        check_requirements(plan, data, build_group_models(plan.scenario, data.input_shape, data.classes))
    assert caught.value.key == key


WIDE = {"model": "mlp", "args": {"hidden": [8]}}
BIASLESS = {"model": "mlp", "args": {"hidden": [8], "bias": False}}
STREAM = {"learner": "naive", "rounds_per_task": 1, "tasks": {"kind": "split", "count": 2}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": [WIDE, {"model": "mlp"}]}, r"equal feature widths, got 8 \('mlp'\) and 200"),
        ({"clients": [BIASLESS]}, "one linear layer with biases; model 'mlp' has another"),
        ({"clients": [WIDE], "continual": STREAM}, "but in a stream of tasks the learner sets them"),
    ],
)
def test_an_unfit_shared_head_is_refused(changes, message, digits_scenario):
    tables = digits_scenario | {"fusion": {"strategy": "fedgh"}} | changes
    if "continual" in changes:
        del tables["rounds"]
    plan = parse_plan(tables)
    data = load_data(plan.scenario)
    models = build_group_models(plan.scenario, data.input_shape, 10)
    with pytest.raises(UserError, match=message):
        check_requirements(plan, data, models)


@pytest.mark.parametrize(
    ("strategy", "clients", "message"),
    [
        ("fedper", [{"model": "mlp", "args": {"hidden": []}}], "model 'mlp' has only weights 'head.…'"),
        ("lg_fedavg", [{"model": "headless:net"}], "model 'headless:net' has no weights 'head.…'"),
        (
            "lg_fedavg",
            [{"model": "mlp"}, {"model": "lenet"}, {"model": "mlp", "args": {"hidden": [84]}}],
            "of the same shape, got 10×200 and 10 of 'mlp', 10×84 and 10 of 'lenet'",
        ),
        ("fedrep", [{"model": "mlp"}, {"model": "lenet"}], "'fedrep' averages parameters"),
    ],
)
def test_models_with_wrong_parts_are_named(strategy, clients, message, digits_scenario, tmp_path):
    (tmp_path / "headless.py").write_text(
        "from torch import nn\n\n\n"
        "def net(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, classes))\n"
    )
    tables = digits_scenario | {"clients": clients, "fusion": {"strategy": strategy}}
    plan = parse_plan(tables | {"plugin_path": [str(tmp_path)]})
    data = load_federated_data(plan.scenario)
    with pytest.raises(UserError, match=message) as caught:
        check_requirements(plan, data, build_group_models(plan.scenario, data.input_shape, data.classes))
    assert caught.value.key in ("fusion.strategy", "clients")
