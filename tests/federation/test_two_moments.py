"""Accuracies before and after fusion."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isclose
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import fedkd
from fedkd.plan.load import load_scenario

pytestmark = pytest.mark.usefixtures("no_report")

ROUNDS, CLIENTS = 3, 4
ALIKE = [{"model": "mlp", "args": {"hidden": [12]}}]
MIXED = [*ALIKE, {"model": "mlp", "args": {"hidden": [20, 12]}}]

Rows = dict[tuple[int, int | None, str, str], float]
"""Values by round, client, split and metric."""


@pytest.fixture(scope="module")
def run(make_digits_scenario, tmp_path_factory) -> Callable[..., tuple[Rows, dict[str, Any]]]:
    """Return a function that runs a strategy under changed tables; the same is run once."""
    done: dict[str, tuple[Rows, dict[str, Any]]] = {}

    def rows(strategy: str, **changes: Any) -> tuple[Rows, dict[str, Any]]:
        clients = ALIKE if strategy.startswith("flwr:") else MIXED
        tables = make_digits_scenario() | {"rounds": ROUNDS, "clients": clients} | changes
        tables["fusion"] = {"strategy": strategy} | changes.get("fusion", {})
        key = json.dumps(tables)
        if key not in done:
            folder: Path = tmp_path_factory.mktemp("run")
            (folder / "scenario.toml").write_text(tomli_w.dumps(tables))
            result = fedkd.run(load_scenario(folder / "scenario.toml"), out=folder / "out")
            found = {(r["round"], r["client"], r["split"], r["metric"]): r["value"] for r in result.metrics()}
            done[key] = found, result.summary
        return done[key]

    return rows


def per_client(rows: Rows, round: int, split: str, metric: str) -> dict[int, float]:
    return {c: v for (r, c, s, m), v in rows.items() if (r, s, m) == (round, split, metric) and c is not None}


@pytest.mark.parametrize(
    "strategy", ["knfu", "fedmd", "fd", "fedproto", "centralized", "feddf", "flwr:FedAvg"]
)
def test_fusion_gain_is_after_minus_before_for_clients_with_guidance(strategy, run):
    rows, _ = run(strategy)
    for round in range(1, ROUNDS + 1):
        for split in ("local", "global"):
            trained, after, gain = (
                per_client(rows, round, split, metric)
                for metric in ("accuracy_before_fusion", "accuracy", "fusion_gain")
            )
            assert trained.keys() == after.keys() == set(range(CLIENTS))
            for client, value in trained.items():
                assert isclose(after[client] - value, gain.get(client, 0.0), abs_tol=1e-12)
            if gain:
                mean = sum(gain.values()) / len(gain)
                assert isclose(rows[round, None, split, "fusion_gain"], mean, abs_tol=1e-12)
                assert rows[round, None, "train", "guided_clients"] == len(gain)


def test_accuracy_before_the_first_fusion_equals_the_local_baseline(run):
    """The first moment of round 1 is that of `local`, to the last bit, whatever comes afterwards."""
    alone, _ = run("local")
    for strategy in ("knfu", "fedmd", "fd", "fedproto"):
        rows, _ = run(strategy)
        for split in ("local", "global"):
            assert per_client(rows, 1, split, "accuracy_before_fusion") == per_client(
                alone, 1, split, "accuracy"
            )


def test_guidance_for_the_next_training_has_no_immediate_effect(run):
    for strategy in ("fd", "fedproto"):
        rows, _ = run(strategy)
        assert set(per_client(rows, 2, "global", "fusion_gain").values()) == {0.0}


def test_averages_are_compared_with_each_clients_model_before_fusion(run):
    rows, _ = run("flwr:FedAvg")
    trained, after = (
        per_client(rows, ROUNDS, "global", metric) for metric in ("accuracy_before_fusion", "accuracy")
    )
    assert len(set(after.values())) == 1, "one model for all"
    assert len(set(trained.values())) > 1, "everyone's own"


def test_absent_clients_do_not_lower_the_mean_gain(run):
    rows, _ = run("fedmd", clients_per_round=2)
    for round in range(1, ROUNDS + 1):
        gain = per_client(rows, round, "local", "fusion_gain")
        assert len(gain) == 2 == rows[round, None, "train", "guided_clients"]
        trained, after = (
            per_client(rows, round, "local", metric) for metric in ("accuracy_before_fusion", "accuracy")
        )
        assert all(trained[c] == after[c] for c in set(range(CLIENTS)) - gain.keys())


@pytest.mark.parametrize("clients", [CLIENTS, 2])
@pytest.mark.parametrize(
    "strategy", ["knfu", "fedmd", "fd", "scarlet", "feddf", "flwr:FedAvg", "scaffold", "fedala", "moon"]
)
def test_evaluation_frequency_keeps_bytes_and_final_results(strategy, clients, run):
    changes: dict[str, Any] = {"clients_per_round": clients}
    if strategy in ("scaffold", "fedala", "moon"):
        changes |= {"clients": ALIKE, "training": {"optimizer": "sgd", "lr": 0.05, "batch_size": 20}}
    (often, dear), (once, cheap) = (run(strategy, evaluate_every=every, **changes) for every in (1, ROUNDS))
    for of_run in (dear, cheap):
        assert of_run["final"]["bytes_up"] > 0 and of_run["final"]["bytes_down"] > 0
    for name in ("bytes_up", "bytes_down"):
        assert dear["final"][name] == cheap["final"][name]
    if strategy == "flwr:FedAvg":  # every evaluation tests the average everywhere
        assert dear["final"]["evaluation_bytes"] == ROUNDS * cheap["final"]["evaluation_bytes"] > 0
    last = [key for key in once if key[0] == ROUNDS]
    assert last and {key: often[key] for key in last} == {key: once[key] for key in last}


def test_the_summary_has_both_accuracies_by_architecture(run):
    rows, summary = run("knfu")
    table = summary["final"]["by_architecture"]
    assert [entry["clients"] for entry in table.values()] == [2, 2]
    for first, entry in enumerate(table.values()):
        for metric in ("accuracy", "accuracy_before_fusion"):
            for split in ("local", "global"):
                values = [rows[ROUNDS, client, split, metric] for client in (first, first + 2)]
                spread = entry[f"{metric}_{split}"]
                assert isclose(spread["mean"], sum(values) / 2)
                assert (spread["min"], spread["max"]) == (min(values), max(values))
