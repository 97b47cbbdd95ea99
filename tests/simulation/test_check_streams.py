"""``fedkd check`` of a stream of tasks."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tomli_w

from fedkd.cli.main import main

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def stream(digits_scenario: dict[str, Any], tmp_path):
    """A stream of five pairs of digits for four clients, as a file."""
    scenario = digits_scenario | {"continual": {"learner": "ewc", "strength": 10.0, "rounds_per_task": 2}}
    del scenario["rounds"]
    scenario["data"] = scenario["data"] | {
        "partition": {"scheme": "iid", "samples_per_client": 40},
        "transfer": {"source": "holdout", "size": 30},
    }
    path = tmp_path / "stream.toml"
    path.write_text(tomli_w.dumps(scenario), encoding="utf-8")
    return path


def check(path, capsys, *overrides: str) -> tuple[int, str, str]:
    status = main(["check", str(path), *(["--set", *overrides] if overrides else [])])
    out, err = capsys.readouterr()
    return status, out, err


def test_check_states_tasks_sizes_head_and_learner(stream, capsys):
    status, out, err = check(stream, capsys)
    assert (status, err) == (0, "")
    assert "digits-test, 10 rounds" in out
    assert "stream     5 tasks (split), 2 rounds of 1 epoch each" in out
    assert "task 0: 0 1 (2 classes)" in out and "task 4: 8 9 (2 classes)" in out and "more" not in out
    assert "head       task: separate outputs for each task, 10 in all" in out
    assert "training samples per client and task: min 32, median 32, max 32" in out
    assert "2 of 2 classes per client" in out
    assert "transfer   30 samples from holdout, for each task" in out
    assert 'learner    ewc: strength = 10.0, anchor = "each"' in out
    # (64 + 1) * 200 + 201 * 200 + 201 * 10 weights of the default mlp.
    assert "mlp: 4 clients, 55,210 parameters" in out
    assert out.endswith("ok\n")


def test_check_lists_only_the_first_tasks(stream, capsys):
    _, out, _ = check(
        stream, capsys, "continual.tasks.kind=permuted", "continual.tasks.count=7", "continual.head=class"
    )
    assert "task 1: permutation 1 (10 classes: 0, 1, 2, 3, 4, 5, …)" in out
    assert "task 5" not in out and "… and 2 more" in out
    assert "one output per class, and all classes compete, 70 in all" in out
    assert "10 of 10 classes per client" in out, "of the task's own classes, not of all outputs"


def test_check_counts_additional_outputs_of_the_learner(stream, capsys):
    learner = ["continual.learner=supsup", "continual.objective=superfluous"]
    stream.write_text(stream.read_text().replace("strength = 10.0\n", ""))
    _, out, _ = check(stream, capsys, *learner, "continual.superfluous_units=3")
    assert "55,813 parameters" in out, "three units with 200 weights and a bias each"


def test_check_estimates_the_traffic_that_a_run_counts(stream, tmp_path, capsys):
    _, out, _ = check(stream, capsys)
    # 4 clients * 30 samples * 2 classes * 4 bytes.
    assert "about 960 B up, 960 B down per round" in out
    assert main(["run", str(stream), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    final = json.loads((tmp_path / "out" / "summary.json").read_text())["final"]
    assert (final["bytes_up"], final["bytes_down"]) == (10 * 960, 10 * 960)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["clients.0.model=random-forest"],
            "continual.learner: 'ewc' changes gradients, but model 'rando",
        ),
        (
            ["continual.learner=packnet", "fusion.strategy=flwr:FedAvg"],
            "fusion.strategy: 'flwr:FedAvg' averages weights, and 'packnet' gives each task its own",
        ),
        (
            ["fusion.strategy=fedbabu"],
            "fusion.strategy: 'fedbabu' trains parts of a model in phases, but in a stream of tasks",
        ),
        (
            ["fusion.strategy=fedntd"],
            "fusion.strategy: 'fedntd' distils the wrong classes; it needs at least 3 classes in e",
        ),
        (
            ["continual.learner=icarl", "fusion.strategy=moon"],
            "fusion.strategy: 'moon' has its own loss in local training, but 'icarl'",
        ),
        (
            ["continual.learner=trgp", "fusion.strategy=flwr:FedAvg"],
            "fusion.strategy: 'flwr:FedAvg' averages weights, and 'trgp' scales them in different subspaces",
        ),
        (
            ["continual.learner=cuber", "fusion.strategy=scaffold", "training.optimizer=sgd"],
            "fusion.strategy: 'scaffold' averages weights, and 'cuber' scales them in different subspaces",
        ),
        (
            ["continual.learner=fedweit", "fusion.strategy=flwr:FedAvg"],
            "fusion.strategy: 'flwr:FedAvg' averages weights, and 'fedweit' gives each task its own",
        ),
        (
            ["fusion.strategy=fedweit"],
            "fusion.strategy: 'fedweit' needs the learner 'fedweit' in a stream of tasks; set",
        ),
        (
            ["continual.learner=fedweit", "fusion.strategy=fedweit", "fusion.knowledge_cache.decay=0.9"],
            "fusion.knowledge_cache: not allowed: 'fedweit' exchanges weights",
        ),
        (
            ["continual.learner=joint", "fusion.strategy=fd"],
            "fusion.strategy: 'fd' distils the present task's classes in local training, but 'joint'",
        ),
        (
            ["continual.learner=icarl", "fusion.strategy=fedproto"],
            "fusion.strategy: 'fedproto' distils the present task's classes in local training, but 'icarl'",
        ),
        (
            ["continual.learner=hat", "fusion.strategy=flwr:FedAvg"],
            "fusion.strategy: 'flwr:FedAvg' averages weights, and 'hat' gives each task its own",
        ),
        (
            ["continual.learner=hat", "clients.0.model=resnet8"],
            "continual.learner: 'hat' gates the units of a chain of linear and convolutional layers; in this",
        ),
        (
            ["continual.learner=gdumb", "fusion.strategy=flwr:FedAvg", "clients_per_round=2"],
            "fusion.strategy: 'flwr:FedAvg' averages weights, and 'gdumb' resets them at every task",
        ),
        (
            ["continual.learner=gdumb", "training.early_stopping={patience=2}"],
            "training.early_stopping: not allowed: 'gdumb' trains only on its buffer",
        ),
        (
            ["continual.learner=gdumb", "fusion.ce_weight=0.5"],
            "fusion.ce_weight: must be 0, as 'gdumb' trains only on its buffer, got 0.5",
        ),
        (
            ["continual.learner=der", "continual.tasks.boundaries=false"],
            "continual.tasks.boundaries: must be true with head 'task', which has separate",
        ),
        (
            ["continual.learner=er", "continual.tasks.boundaries=false", "continual.head=class"],
            "continual.tasks.boundaries: must be true: 'er' needs task boundaries",
        ),
        (
            ["continual.online=true", "training.local_epochs=2"],
            "training.local_epochs: must be 1, as continual.online trains on each sample once, got 2",
        ),
        (
            ["continual.online=true", "fusion.ce_weight=0.5"],
            "fusion.ce_weight: must be 0, as continual.online trains on each sample once, got 0.5",
        ),
        (
            ["continual.learner=cumulative", "continual.online=true"],
            "continual.online: must be false: 'cumulative' retrains on all samples so far",
        ),
        (["continual.tasks.blur=0.1"], "continual.tasks.blur: needs head = 'class', as a sample may come"),
        (
            ["continual.tasks.blur=0.1", "continual.head=class", "continual.tasks.order=overlapping"],
            "continual.tasks.blur: needs clients that learn all of several tasks",
        ),
        (
            ["fusion.strategy=fedproto", "fusion.inference=prototypes"],
            'fusion.inference: must be "model" in a stream of tasks, which evaluates',
        ),
        (
            ["continual.learner=gpm", "continual.threshold=[0.9]"],
            "continual.threshold: must be one number, or one for each of 2 layers (body.1, body.3), got 1",
        ),
        (["continual.tasks.count=6"], "continual.tasks.count: 10 classes do not divide evenly"),
        (
            ["continual.tasks.count=20", "continual.tasks.classes_per_task=1"],
            "continual.tasks.count: 20 tasks",
        ),
    ],
)
def test_impossible_streams_give_one_line(stream, overrides, words, capsys):
    stream.write_text(stream.read_text().replace("strength = 10.0\n", ""))
    status, out, err = check(stream, capsys, *overrides)
    assert status == 2 and "ok" not in out.splitlines()
    assert err.count("\n") == 1 and f"error: {stream}: {words}" in err
