"""Whole runs of strategies with auxiliary networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fedkd
from fedkd.data.load import load_data
from fedkd.plan.load import parse_plan, parse_scenario
from fedkd.trained.client import load_client

pytestmark = pytest.mark.usefixtures("no_report")

BATCH_NORM = {"model": "resnet8", "args": {"norm": "batch"}}


@pytest.fixture
def tables(digits_scenario) -> dict[str, Any]:
    training = digits_scenario["training"] | {"optimizer_state": "kept", "clip_norm": 1.0, "accumulate": 2}
    small = {"partition": {"scheme": "iid", "samples_per_client": 20}, "clients": 2, "test_size": 20}
    data = digits_scenario["data"] | small | {"transfer": {"source": "holdout", "size": 10}}
    return digits_scenario | {"data": data, "training": training | {"batch_size": 5}, "rounds": 2}


def test_auxiliary_networks_train_in_the_loop_under_every_executor(tables, tmp_path):
    """With normalisation layers, kept optimiser states, clipping and accumulated batches."""
    found = []
    for executor in ("loop", "vectorised"):
        training = tables["training"] | {"executor": executor}
        fusion = {"strategy": "apfl", "share_lr": 0.1}
        changed = tables | {"training": training, "clients": [BATCH_NORM], "fusion": fusion}
        fedkd.run(parse_scenario(changed), out=tmp_path / executor)
        found.append((tmp_path / executor / "metrics.jsonl").read_bytes())
    assert found[0] == found[1]


def test_a_loaded_client_is_the_evaluated_model(tables, tmp_path):
    fusion = {"strategy": "ditto"}
    result = fedkd.run(parse_scenario(tables | {"fusion": fusion}), out=tmp_path / "run")
    client = load_client(tmp_path / "run", 0)
    accuracy = next(
        row["value"]
        for row in result.metrics()
        if (row["round"], row["client"], row["split"], row["metric"]) == (2, 0, "global", "accuracy")
    )
    data = load_data(parse_plan(tables | {"fusion": fusion}).scenario).client(0)
    with torch.no_grad():
        right = client.model(torch.from_numpy(data.global_x)).argmax(dim=1).numpy() == data.global_y
    assert right.mean() == pytest.approx(accuracy)
