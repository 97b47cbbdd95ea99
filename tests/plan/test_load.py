from __future__ import annotations

import copy
import tomllib
from pathlib import Path

import pytest

from fedkd.errors import UserError
from fedkd.plan.load import load_scenario, parse_scenario
from fedkd.scenario.dump import dump_toml
from fedkd.scenario.load import scenario_from_json

FULL = """
name = "full"
seed = 3
rounds = 4
clients_per_round = 3

[data]
dataset = "mnist"
clients = 5
partition = { scheme = "shards", shards_per_client = 3 }
transfer = { source = "noise", size = 7 }
test_size = 11

[[clients]]
model = "mlp"
share = 2
args = { hidden = [8, 4], dropout = 0.25 }
[[clients]]
model = "cnn"

[training]
optimizer = "sgd"
lr = 1e-5
momentum = 0.9

[fusion]
strategy = "fedmd"
matching = "kl"
temperature = 3

[tracking]
wandb = { mode = "offline", tags = ["a", "b"] }
"""


def write(folder: Path, text: str, name: str = "a.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def failure(function, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def test_a_file_loads_into_typed_values(tmp_path):
    scenario = load_scenario(write(tmp_path, FULL))
    assert (scenario.name, scenario.seed, scenario.rounds) == ("full", 3, 4)
    assert scenario.training.lr == 1e-5
    assert scenario.clients[0].args == {"hidden": [8, 4], "dropout": 0.25}
    assert scenario.clients[0].share == 2.0 and isinstance(scenario.clients[0].share, float)
    assert scenario.tracking.wandb is not None and scenario.tracking.wandb.tags == ["a", "b"]


@pytest.mark.parametrize("text", [FULL, "seed = 0", '[fusion]\nstrategy = "local"'])
def test_dumped_toml_loads_back_to_an_equal_scenario(tmp_path, text):
    scenario = load_scenario(write(tmp_path, text))
    frozen = dump_toml(scenario)
    assert parse_scenario(tomllib.loads(frozen)) == scenario
    (tmp_path / "run").mkdir()
    again = load_scenario(write(tmp_path / "run", frozen, "scenario.toml"))
    assert again == scenario
    assert dump_toml(again) == frozen


def test_a_scenario_survives_a_json_round_trip(tmp_path):
    scenario = load_scenario(write(tmp_path, FULL))
    assert scenario_from_json(scenario.model_dump_json()) == scenario
    assert "rounds" in failure(scenario_from_json, '{"rounds": 0}')


def test_strategy_defaults_are_filled_in(digits_scenario):
    assert parse_scenario(digits_scenario).fusion.model_extra["beta"] == 10.0
    digits_scenario["fusion"]["beta"] = 2
    assert parse_scenario(digits_scenario).fusion.model_extra["beta"] == 2.0


def test_flower_defaults_are_filled_in_and_missing_values_refused(digits_scenario):
    digits_scenario["fusion"] = {"strategy": "flwr:FedAdam", "eta": 0.5}
    resolved = parse_scenario(digits_scenario).fusion.model_extra
    assert resolved["eta"] == 0.5 and resolved["beta_1"] == 0.9
    digits_scenario["fusion"] = {"strategy": "flwr:QFedAvg"}
    assert "fusion.client_learning_rate" in failure(parse_scenario, digits_scenario)


def test_parsing_does_not_change_its_argument(digits_scenario):
    before = copy.deepcopy(digits_scenario)
    parse_scenario(digits_scenario)
    assert digits_scenario == before


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("mine.toml", "seed = 2", "mine"),
        ("mine.toml", 'name = "other"', "other"),
        ("two words.toml", "seed = 2", "scenario"),
    ],
)
def test_a_scenario_without_a_name_is_called_like_its_file(tmp_path, file, text, name):
    (tmp_path / file).write_text(text)
    assert load_scenario(tmp_path / file).name == name


def test_the_seed_argument_overrides_the_file(tmp_path):
    assert load_scenario(write(tmp_path, "seed = 3"), seed=9).seed == 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rounds = 0", "rounds: must be ≥ 1, got 0"),
        ("rounds = true", "rounds: must be an integer, got true"),
        ("rounds = '3'", "rounds: must be an integer, got '3'"),
        ("rounds = 3.0", "rounds: must be an integer, got 3.0"),
        ("name = 'a b'", "name: must be letters, digits, '.', '_' and '-'"),
        ("training.lr = '1e-3'", "training.lr: must be a number, got '1e-3'"),
        ("training.lr = true", "training.lr: must be a number, got true"),
        ("training.lr = inf", "training.lr: must be a finite number, got inf"),
        ("training.autocast = 1", "training.autocast: must be true or false, got 1"),
        ("training.batchsize = 1", "training.batchsize: unknown key; use training.batch_size"),
        ("data.partition.alhpa = 1", "data.partition.alhpa: unknown key; did you mean 'alpha'?"),
        ("tracking.wandb.projct = 'x'", "tracking.wandb.projct: unknown key; did you mean 'project'?"),
        ("[[clients]]\nmodle = 'mlp'", "clients.0.modle: unknown key; did you mean 'model'?"),
        ("[[clients]]\nmodel = 'mpl'", "clients.0.model: no model named 'mpl'; did you mean 'mlp'?"),
        ("data = 3", "data: must be a table, got 3"),
        ("clients = []", "clients: must have at least 1 entries, got 0"),
        (
            "training.optimizer = 'lion'",
            "training.optimizer: must be one of 'adam', 'adamw', 'rmsprop', 'sgd', got 'lion'",
        ),
        (
            "training.momentum = 0.9",
            "training.momentum: must be left out: it applies only to 'sgd' or 'rmsprop', and training.opt",
        ),
        ("data.dataset = 'mnits'", "data.dataset: no data set named 'mnits'; did you mean 'mnist'?"),
        ("data.transfer.source = 'nois'", "data.transfer.source: no data set named 'nois'"),
        ("clients_per_round = 11", "clients_per_round: must be ≤ data.clients (10), got 11"),
        (
            "data.clients = 1\nclients = [{ model = 'mlp' }, { model = 'cnn' }]",
            "clients: must be at most 1 tables [[clients]], as data.clients is 1, got 2",
        ),
        (
            "data.partition.scheme = 'file'",
            "data.partition.path: missing; scheme 'file' needs a JSON file",
        ),
        (
            "data.partition.path = 'p.json'",
            "data.partition.path: must be left out: it applies only to 'file'",
        ),
        (
            "data.partition = { scheme = 'file', path = 'p.json', samples_per_client = 50 }",
            "data.partition.samples_per_client: must be left out",
        ),
        (
            "data.partition = { samples_per_client = 5 }",
            "data.partition.samples_per_client: must be ≥ data.partition.min_samples (10), got 5",
        ),
        ("data.dataset = 'npz'", "data.args.path: missing; data set 'npz' needs the path of its files"),
        (
            "data.transfer.source = 'npz'",
            "data.transfer.args.path: missing; data set 'npz' needs the path of its files",
        ),
        ("data.transfer.args = { path = 'x' }", "data.transfer.args: must be left out"),
        (
            "data.transfer = { source = 'noise', alpha = 0.5 }",
            "data.transfer.alpha: must be left out",
        ),
        (
            "fusion.strategy = 'knuf'",
            "fusion.strategy: no fusion strategy named 'knuf'; did you mean 'knfu'?",
        ),
        ("fusion.beta = -1", "fusion.beta: must be ≥ 0, got -1"),
        ("fusion.beta = true", "fusion.beta: must be a number, got true"),
        ("fusion.beta = '1'", "fusion.beta: must be a number, got '1'"),
        ("fusion.bta = 1", "fusion.bta: unknown key for strategy 'knfu'; did you mean 'beta'?"),
        ("fusion.distil_epochs = 1", "unknown key for strategy 'knfu'; did you mean 'distill_epochs'?"),
        (
            "fusion.strategy = 'flwr:FedAdm'",
            "fusion.strategy: no usable strategy of Flower named 'FedAdm'; did you mean",
        ),
        (
            "fusion = { strategy = 'flwr:FedAdam', et = 1 }",
            "fusion.et: unknown key for strategy 'flwr:FedAdam'",
        ),
        ("fusion = { strategy = 'flwr:FedAdam', eta = 'a' }", "fusion.eta: must be a number, got 'a'"),
        (
            "fusion.strategy = 'flwr:FedAvg'\nclients = [{ model = 'mlp' }, { model = 'cnn' }]",
            "clients: 'flwr:FedAvg' averages parameters, so all clients need one architecture",
        ),
        (
            "fusion.strategy = 'flwr:FedAvg'\n"
            "clients = [{ model = 'mlp' }, { model = 'mlp', args = { hidden = [3] } }]",
            "got 'mlp' and 'mlp' with other args (clients.1)",
        ),
        (
            "fusion = { strategy = 'fedgen', share = 'model' }\n"
            "clients = [{ model = 'mlp' }, { model = 'cnn' }]",
            'fusion.share: must be "head" where clients have several architectures, got "model"',
        ),
        ('"a\\nb" = 1', '"a\\nb": unknown key'),
    ],
)
def test_an_error_is_one_line_with_file_and_key(tmp_path, text, expected):
    path = write(tmp_path, text)
    message = failure(load_scenario, path)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert "\n" not in message


def test_further_errors_are_counted_and_misspelt_keys_come_first(tmp_path):
    message = failure(load_scenario, write(tmp_path, "seed = -1\nrounds = 0\nruonds = 5"))
    assert "ruonds: unknown key; did you mean 'rounds'? (and 2 more)" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"seed = 1\nrounds = = 2\n", "line 2"),
        (b"seed = 1\nseed = 2\n", "line 2"),
        (b"[data\n", "line 1"),
        (b"name = '\xff'", "is not UTF-8 text"),
    ],
)
def test_broken_toml_names_the_line(tmp_path, content, expected):
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    message = failure(load_scenario, path)
    assert message.startswith(f"{path}: ") and expected in message


def test_missing_files_and_folders_are_refused(tmp_path):
    assert "no such file" in failure(load_scenario, tmp_path / "none.toml")
    assert "is a folder" in failure(load_scenario, tmp_path)


def test_the_scenario_folder_is_searched_only_for_existing_files(tmp_path):
    text = "[[clients]]\nmodel = 'mine:tiny'"
    assert load_scenario(write(tmp_path, text)).plugin_path == []
    write(tmp_path, "", "mine.py")
    assert load_scenario(write(tmp_path, text)).plugin_path == [str(tmp_path)]


def test_relative_plugin_folders_are_relative_to_the_scenario(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    scenario = load_scenario(write(tmp_path, "plugin_path = ['plugins']"))
    assert scenario.plugin_path == [str(tmp_path / "plugins")]


def test_a_data_file_beside_the_scenario_is_found_from_anywhere(tmp_path):
    write(tmp_path, "[]", "deal.json")
    scenario = load_scenario(write(tmp_path, "data.partition = { scheme = 'file', path = 'deal.json' }"))
    assert scenario.plugin_path == [str(tmp_path)]


def test_the_data_root_is_beside_the_scenario_or_below_the_working_folder(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = write(tmp_path, "data = { root = 'sets', dataset = 'mnist' }")
    assert load_scenario(path).data.root == str(elsewhere / "sets")
    (tmp_path / "sets").mkdir()
    assert load_scenario(path).data.root == str(tmp_path / "sets")


def test_hyperparameters_of_a_plug_in_strategy_are_checked(tmp_path):
    write(
        tmp_path,
        """
from dataclasses import dataclass
from typing import Annotated, ClassVar
from pydantic import Field
from fedkd.fusion.strategy import FusionStrategy, Guidance

@dataclass(frozen=True)
class Nobody(FusionStrategy):
    name: ClassVar[str] = "nobody"
    sharpness: Annotated[float, Field(gt=0)] = 4.0

    def fuse(self, knowledge, memory):
        return Guidance(targets=None)

    def loss(self, student_logits, targets):
        return student_logits.sum()
""",
        "load_test_plugin.py",
    )
    text = "fusion.strategy = 'load_test_plugin:Nobody'\n"
    assert load_scenario(write(tmp_path, text)).fusion.model_extra == {"sharpness": 4.0}
    path = write(tmp_path, text + "fusion.sharpness = 0")
    assert "fusion.sharpness: must be > 0, got 0" in failure(load_scenario, path)
    path = write(tmp_path, "fusion.strategy = 'load_test_plugin:Nobdy'")
    assert "fusion.strategy: module 'load_test_plugin' has no 'Nobdy'" in failure(load_scenario, path)


def test_a_stream_of_tasks_sets_head_and_rounds(tmp_path):
    text = "[continual]\nrounds_per_task = 3\ntasks = { kind = 'permuted', count = 4 }"
    scenario = load_scenario(write(tmp_path, text))
    assert (scenario.rounds, scenario.continual.head) == (12, "domain")
    assert parse_scenario(scenario.model_dump()) == scenario
    lists = "[continual]\nrounds_per_task = 2\ntasks = { classes = [[3, 1], [0], [2]] }"
    listed = load_scenario(write(tmp_path, lists))
    assert (listed.rounds, listed.continual.tasks.count) == (6, 3)
    assert parse_scenario(listed.model_dump()) == listed
    default = load_scenario(write(tmp_path, "[continual]"))
    assert (default.rounds, default.continual.head, default.continual.tasks.count) == (5, "task", 5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[continual]\nlearner = 'ewwc'", "continual.learner: no learner named 'ewwc'; did you mean 'ewc'?"),
        ("[continual]\nsharpness = 1", "continual.sharpness: unknown key for learner 'naive'"),
        ("rounds = 4\n[continual]", "rounds: must be 5, the 5 tasks × 1 rounds_per_task, or left out, got 4"),
        ("[continual.tasks]\nkind = 'overlapping'", "continual.tasks.count: missing; 'overlapping' tasks"),
        (
            "[continual.tasks]\nstride = 2",
            "continual.tasks.stride: must be left out: it applies only to",
        ),
        (
            "[continual.tasks]\nkind = 'datasets'\ndatasets = ['mnist', 'digits']\ncount = 3",
            "continual.tasks.count: must be ≤ 2, the number of data sets, got 3",
        ),
        (
            "[continual.tasks]\nkind = 'datasets'\ndatasets = ['mnist', 'diggits']",
            "continual.tasks.datasets.1: no data set named 'diggits'; did you mean 'digits'?",
        ),
        (
            "[continual.tasks]\nkind = 'datasets'\ndatasets = ['mnist', 'mnist']",
            "continual.tasks.datasets.1: 'mnist' occurs twice",
        ),
        (
            "[continual.tasks]\nkind = 'overlapping'\ncount = 2\nstride = 4",
            "continual.tasks.stride: must be < 4, the number of classes of a task, so that tasks overlap",
        ),
        ("[data]\ntransfer = { size = 0 }", "data.transfer.size: must be ≥ 1 for strategy 'knfu'"),
        (
            "[continual.tasks]\nclasses = [[0, 1], [2, 2]]",
            "continual.tasks.classes.1.1: class 2 occurs twice",
        ),
        (
            "[continual.tasks]\nclasses = [[0, 1], [3, 1]]",
            "continual.tasks.classes.1.1: class 1 is also in task 0; only kind = 'overlapping'",
        ),
        (
            "[continual.tasks]\nkind = 'overlapping'\nclasses = [[0, 1], [2]]",
            "continual.tasks.classes: no class is in two tasks; use kind = 'split'",
        ),
        ("[continual.tasks]\nclasses = [[0], []]", "continual.tasks.classes.1: must have at least 1"),
        ("[continual.tasks]\nclasses = [[0], [-1]]", "continual.tasks.classes.1.0: must be ≥ 0, got -1"),
        (
            "[continual.tasks]\nclasses = [[0], [1]]\ncount = 3",
            "continual.tasks.count: must be 2, the number of lists of classes, or left out, got 3",
        ),
        (
            "[continual.tasks]\nclasses = [[0], [1]]\nclass_order = 'shuffled'",
            "continual.tasks.class_order: must be left out: it applies only to",
        ),
        (
            "[continual.tasks]\nclass_seed = 3",
            "continual.tasks.class_seed: must be left out: it applies only to",
        ),
        (
            "[continual.tasks]\nfirst_classes = 3\ncount = 1",
            "continual.tasks.first_classes: needs further tasks",
        ),
        (
            "[continual.tasks]\nkind = 'overlapping'\ncount = 2\nfirst_classes = 3",
            "continual.tasks.first_classes: must be left out: it applies only to",
        ),
        (
            "[continual.tasks]\nkind = 'rotated'\npermute_first = true",
            "continual.tasks.permute_first: must be left out: it applies only to",
        ),
        (
            "[continual.tasks]\nkind = 'permuted'\nclasses = [[0]]",
            "continual.tasks.classes: must be left out: it applies only to",
        ),
    ],
)
def test_invalid_streams_are_refused(tmp_path, text, expected):
    assert expected in failure(load_scenario, write(tmp_path, text))
