"""What a trial of a round says it would weigh is what a run counts."""

from __future__ import annotations

from typing import Any

import pytest
import tomli_w

import fedkd
from fedkd.data.load import load_data
from fedkd.plan.load import load_plan
from fedkd.server.models import TransferSetModels
from fedkd.server.trial import trial_exchange

pytestmark = pytest.mark.usefixtures("no_report")

NETWORKS = [{"model": "mlp", "args": {"hidden": [12]}}, {"model": "mlp", "args": {"hidden": [20, 12]}}]


@pytest.fixture
def write(digits_scenario, tmp_path):
    """Return a function from changed tables to the path of a scenario of one round."""

    def make(**changes: Any):
        path = tmp_path / "scenario.toml"
        path.write_text(tomli_w.dumps(digits_scenario | {"rounds": 1, "clients": NETWORKS} | changes))
        return path

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "fedmd"},
        {"strategy": "knfu", "upload_dtype": "float16"},
        {"strategy": "fd"},
        {"strategy": "knfu", "upload_top": 3},
        {"strategy": "fedproto"},
        {"strategy": "cfd"},
        {"strategy": "scarlet", "samples_per_round": 20},
        {"strategy": "kta"},
        {"strategy": "fedgh"},
        {"strategy": "fml"},
    ],
    ids=lambda changes: changes["strategy"],
)
def test_the_estimate_equals_the_bytes_of_the_first_round(changes, write, tmp_path):
    """Every client holds samples of every class, so that untrained clients have as much to say as others."""
    data = {
        "dataset": "digits",
        "clients": 5,
        "partition": {"scheme": "iid", "samples_per_client": 100},
        "transfer": {"size": 60},
    }
    path = write(fusion=changes, data=data, clients_per_round=3)
    plan = load_plan(path)
    final = fedkd.run(plan.scenario, out=tmp_path / "out").summary["final"]
    assert trial_exchange(plan, load_data(plan.scenario)) == (final["bytes_up"], final["bytes_down"])


def test_the_estimate_applies_no_filter(write):
    filters = [{"by": "confidence", "threshold": 0.9, "at": "upload"}, {"by": "agreement"}]
    plans = [load_plan(write(fusion={"strategy": "dsfl", "filters": given})) for given in ([], filters)]
    data = load_data(plans[0].scenario)
    assert trial_exchange(plans[1], data) == trial_exchange(plans[0], data)


def test_one_of_several_equal_clients_represents_them(write):
    """Five of six send features of one width, so that the mean over all is not that of the two tried."""
    clients = [{"model": "mlp", "args": {"hidden": [12]}, "share": 5}, {"model": "lenet"}]
    plan = load_plan(write(fusion={"strategy": "fedmd"}, clients=clients))
    data = load_data(plan.scenario)
    up, down = trial_exchange(plan, data)
    assert up == down == 4 * 60 * 10 * 4, "clients, samples, classes, bytes of a float"


@pytest.mark.parametrize(("strategy", "each"), [("fedet", 60 * 10 * 4), ("cfd", 8 + 60 * 10 * 3 // 8 + 8)])
def test_the_estimate_trains_no_server_model(strategy, each, write, monkeypatch):
    monkeypatch.setattr(TransferSetModels, "train", None)
    fusion = {"strategy": strategy, "server_model": "mlp"} | ({"bits_down": 3} if strategy == "cfd" else {})
    plan = load_plan(write(fusion=fusion))
    up, down = trial_exchange(plan, load_data(plan.scenario))
    assert up > 0 and down == 4 * each
