"""Keys without effect are refused."""

from __future__ import annotations

from typing import Any

import pytest
import tomli_w

from fedkd.benchmark.cells import make_cells
from fedkd.benchmark.schema import load_bench
from fedkd.errors import UserError
from fedkd.plan.checks.key_rules import TABLE, Reader
from fedkd.plan.checks.unread_keys import is_set, without_moot_keys
from fedkd.plan.hyperparameters import bind_strategy
from fedkd.plan.load import load_plan, parse_plan, plan_with_changes
from fedkd.scenario.dump import dump_toml
from fedkd.scenario.overrides import apply_values
from fedkd.scenario.schema import Scenario

SCHEME, KIND, CLOCK = "data.partition.scheme", "continual.tasks.kind", "continual.tasks.pace"
STRATEGY, STALE = "fusion.strategy", {"fusion.strategy": "knfu", "fusion.stale_decay": 0.5}
FOREST, MIX = ({"clients": [{"model": name} for name in of]} for of in (["random-forest"], ["sgd", "mlp"]))
RING = {"topology.graph": "ring"}
NETWORK_KEYS = {
    "optimizer": "sgd",
    "optimizer_state": "kept",
    "lr": 0.1,
    "weight_decay": 0.1,
    "schedule": "cosine",
    "clip_norm": 1.0,
    "accumulate": 2,
    "early_stopping": {},
    "autocast": True,
    "executor": "vectorised",
    "fast": False,
    "batch_size": 8,
    "local_epochs": 2,
}
Beside = dict[str, Any]
EXAMPLES: list[tuple[str, Any, Beside, Beside]] = [
    ("data.root", "sets", {}, {"data.dataset": "mnist"}),
    ("data.partition.alpha", 0.5, {SCHEME: "iid"}, {SCHEME: "quantity"}),
    ("data.head", "mean", {}, {"data.task": "regression", "data.dataset": "diabetes"}),
    ("data.partition.bins", 5, {}, {"data.task": "regression", "data.dataset": "diabetes"}),
    ("data.partition.shards_per_client", 2, {SCHEME: "dirichlet"}, {SCHEME: "shards"}),
    ("data.partition.samples_per_client", 50, {SCHEME: "natural"}, {SCHEME: "circle"}),
    ("data.partition.replacement", True, {SCHEME: "shards"}, {SCHEME: "iid"}),
    ("data.partition.path", "deal.json", {}, {SCHEME: "file"}),
    ("data.partition.args", {"width": 2}, {}, {SCHEME: "mine:deal"}),
    ("data.transfer.args", {"path": "x"}, {}, {"data.transfer.source": "npz"}),
    ("data.transfer.alpha", 0.5, {"data.transfer.source": "noise"}, {}),
    ("data.transfer.alpha", 0.5, {"data.transfer.size": 0}, {}),
    ("data.transfer.owners", ["a"], {"data.transfer.source": "noise"}, {}),
    ("data.transfer.owners", ["a"], {"data.transfer.size": 0}, {}),
    ("data.test_size", 100, {"data.validation": 0.2}, {}),
    ("training.momentum", 0.9, {}, {"training.optimizer": "sgd"}),
    ("training.lr_decay", 0.9, {}, {"training.schedule": "step", "training.lr_step_rounds": 2}),
    ("training.lr_step_rounds", 2, {}, {"training.schedule": "step"}),
    ("training.vmap_size", 16, {}, {"training.executor": "auto"}),
    ("training.autocast", True, {"engine.device": "cpu"}, {}),
    ("training.held_out", 0.1, {"training.early_stopping": {}}, {}),
    ("training.held_out", 0.1, {"continual": {}}, {}),
    *((f"training.{key}", value, FOREST, MIX) for key, value in NETWORK_KEYS.items()),
    ("training.batch_size", 8, FOREST | {"clock.work": "drawn"}, FOREST | {"clock.work": "steps"}),
    ("fusion.distill_epochs", 1, {STRATEGY: "local"}, {STRATEGY: "experts"}),
    ("fusion.distill_epochs", 1, {STRATEGY: "flwr:FedAvg"}, {STRATEGY: "message"}),
    ("fusion.distill_batch_size", 8, {STRATEGY: "feddf"}, {STRATEGY: "scarlet"}),
    ("fusion.distill_lr", 0.1, {STRATEGY: "fd"}, {STRATEGY: "fd", "measure.transferability": {}}),
    ("fusion.distill_lr", 0.1, {"fusion.distill_epochs": 0}, {}),
    ("fusion.ce_weight", 1.0, {STRATEGY: "local"}, {STRATEGY: "knfu"}),
    ("fusion.ce_weight", 1.0, {"fusion.distill_epochs": 0}, {}),
    ("fusion.kd_weight_decay", 0.9, {}, {"fusion.kd_weight": 0.3}),
    ("fusion.upload_dtype", "float16", {STRATEGY: "local"}, {STRATEGY: "flwr:FedAvg"}),
    ("fusion.upload_top", 3, {STRATEGY: "fedproto"}, {STRATEGY: "dsfl"}),
    ("fusion.knowledge_cache.decay", 0.9, STALE, {STRATEGY: "knfu"}),
    ("fusion.relations.temperature", 1.0, {"fusion.relations.kind": "rkd"}, {}),
    ("fusion.relations.distance", 1.0, {}, {"fusion.relations.kind": "rkd"}),
    ("fusion.relations.angle", 1.0, {}, {"fusion.relations.kind": "rkd"}),
    ("faults.poison", "flipped", {}, {"faults.poisoned": 0.2}),
    ("faults.straggler_work", 0.5, {}, {"faults.stragglers": 0.2}),
    ("faults.timeout", 3.0, {"engine.kind": "inline"}, {}),
    ("faults.retries", 2, {}, {"faults.on_client_error": "retry"}),
    ("faults.min_replies", 2, {"faults.on_client_error": "retry"}, {"faults.on_client_error": "skip"}),
    ("population.late_by", 2, {}, {"population.late": 0.5}),
    ("population.break_rounds", 2, {}, {"population.breaks": 0.5}),
    ("clock.bandwidth_spread", 0.5, {}, {"clock.bandwidth": 10.0}),
    ("asynchronous.staleness", 0.5, STALE, {STRATEGY: "knfu"}),
    ("asynchronous.staleness", 0.5, {STRATEGY: "local"}, {STRATEGY: "fedbuff"}),
    ("topology.k", 4, RING, {"topology.graph": "k_regular"}),
    ("topology.order", "shuffled", {"topology.graph": "matching"}, RING),
    ("topology.path", "who.json", RING, {"topology.graph": "file"}),
    ("topology.relay", True, {}, RING),
    ("topology.mixing", "push_sum", {STRATEGY: "gossip"}, RING | {STRATEGY: "gossip"}),
    ("topology.mixing", "push_sum", RING | {STRATEGY: "knfu"}, RING | {STRATEGY: "gossip"}),
    ("continual.tasks.classes", [[0], [1]], {KIND: "permuted"}, {}),
    ("continual.tasks.first_classes", 4, {KIND: "overlapping"}, {}),
    ("continual.tasks.classes_per_task", 2, {KIND: "rotated"}, {}),
    ("continual.tasks.stride", 2, {}, {KIND: "overlapping"}),
    ("continual.tasks.class_order", "shuffled", {"continual.tasks.classes": [[0], [1]]}, {}),
    ("continual.tasks.class_seed", 3, {}, {"continual.tasks.class_order": "shuffled"}),
    ("continual.tasks.blur", 0.1, {KIND: "permuted"}, {}),
    ("continual.tasks.permute_first", True, {KIND: "rotated"}, {KIND: "permuted"}),
    ("continual.tasks.max_angle", 90.0, {}, {KIND: "rotated"}),
    ("continual.tasks.datasets", ["mnist"], {}, {KIND: "datasets"}),
    ("continual.tasks.shape", [1, 8, 8], {}, {KIND: "datasets"}),
    ("continual.tasks.tasks_per_client", 2, {}, {"continual.tasks.order": "overlapping"}),
    ("continual.tasks.visits", 2, {"continual.tasks.order": "file"}, {}),
    ("continual.tasks.schedule", "a.json", {}, {"continual.tasks.order": "file"}),
    ("continual.tasks.groups", 2, {}, {CLOCK: "groups"}),
    ("continual.tasks.pace_range", [1, 2], {}, {CLOCK: "uniform"}),
    ("continual.tasks.max_lag", 1, {}, {"population.breaks": 0.5}),
    ("continual.tasks.max_lag", 1, {CLOCK: "file"}, {CLOCK: "poisson"}),
    (
        "continual.rounds_per_task",
        2,
        {CLOCK: "groups", "continual.tasks.pace_range": [1, 2]},
        {CLOCK: "groups"},
    ),
    *(
        (f"engine.{key}", value, {"engine.kind": "inline"}, {})
        for key, value in {
            "actors": 2,
            "cpus_per_actor": 1.0,
            "gpus_per_actor": 0.5,
            "address": "auto",
            "start_timeout": 9.0,
        }.items()
    ),
]


def moot(tables: dict[str, Any]) -> UserError | None:
    scenario = Scenario.model_validate(tables)
    try:
        without_moot_keys(without_moot_keys(scenario), bind_strategy(scenario)[0])
    except UserError as error:
        return error
    return None


def nested(key: str, value: Any, beside: Beside) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    apply_values(tables, {key: value} if value != {} else {})
    apply_values(tables, beside)
    for path, empty in ({key: value} | beside).items():
        if empty == {}:
            table, _, name = path.rpartition(".")
            (tables.setdefault(table, {}) if table else tables).setdefault(name, {})
    return tables


@pytest.mark.parametrize(("key", "value", "without", "beside"), EXAMPLES)
def test_a_key_without_effect_is_refused(key, value, without, beside):
    error = moot(nested(key, value, without))
    assert (
        error is not None
        and error.key == key
        and error.message.startswith("must be left out: it applies only to ")
    )
    assert moot(nested(key, value, beside)) is None


def test_every_row_of_the_table_has_an_example():
    def is_violated(row: Reader) -> bool:
        for key, value, without, _ in EXAMPLES:
            scenario = Scenario.model_validate(nested(key, value, without))
            strategy = bind_strategy(scenario)[0] if row.asks_strategy else None
            if row.key == key and is_set(scenario, key) and not row.reads(scenario, strategy):
                return True
        return False

    assert [row for row in TABLE if not is_violated(row)] == []


def test_disabled_options_may_be_stated():
    off = {"training.momentum": 0.0, "topology.relay": False, "clock.bandwidth_spread": 0.0}
    tables: dict[str, Any] = {}
    apply_values(tables, off)
    assert moot(tables) is None


def test_an_override_drops_keys_that_it_makes_irrelevant(tmp_path):
    file = tmp_path / "skewed.toml"
    file.write_text('[data.partition]\nscheme = "dirichlet"\nalpha = 0.1\n')
    assert load_plan(file, ["data.partition.scheme=iid"]).scenario.data.partition.alpha == 0.5
    assert (
        plan_with_changes(file, {"data": {"partition": {"scheme": "iid"}}}).scenario.data.partition.alpha
        == 0.5
    )
    with pytest.raises(UserError, match=r"alpha: must be left out.*set on the command line"):
        load_plan(file, ["data.partition.scheme=iid", "data.partition.alpha=0.2"])
    file.write_text('rounds = 3\n[data.partition]\nscheme = "iid"\nalpha = 0.1\n')
    with pytest.raises(UserError, match=r"data\.partition\.scheme is 'iid'$"):
        load_plan(file, ["rounds=4"])


def test_a_resolved_scenario_may_hold_unused_defaults(digits_scenario):
    plan = parse_plan(digits_scenario | {"fusion": {"strategy": "local"}})
    tables = plan.scenario.model_dump(exclude_none=True)
    assert parse_plan(tables).scenario == plan.scenario
    assert dump_toml(parse_plan(tables).scenario) == dump_toml(plan.scenario)
    tables["training"]["momentum"] = 0.9
    with pytest.raises(UserError, match=r"training\.momentum: must be left out"):
        parse_plan(tables)


def cells(tmp_path, digits_scenario, **tables: Any):
    file = tmp_path / "bench.toml"
    file.write_text(tomli_w.dumps({"scenario": digits_scenario, "seeds": 1, **tables}))
    return [cell.scenario for cell in make_cells(load_bench(file))]


def test_a_cell_drops_keys_that_an_axis_makes_irrelevant(tmp_path, digits_scenario):
    weighted = digits_scenario | {"fusion": {"strategy": "knfu", "ce_weight": 1.0}}
    weighted["engine"] = {"kind": "inline", "cpus_per_actor": 2.0}
    found = cells(
        tmp_path,
        weighted,
        grid={"data.partition.scheme": ["dirichlet", "iid"], "fusion.strategy": ["knfu", "local"]},
        set={"fusion.distill_epochs": 2},
    )
    assert [s.data.partition.alpha for s in found] == [1.0, 1.0, 0.5, 0.5]
    assert [s.fusion.distill_epochs for s in found] == [2, 1, 2, 1]
    assert [is_set(s, "fusion.ce_weight") for s in found] == [True, False] * 2
    assert {s.engine.cpus_per_actor for s in found} == {2.0}, "which the bench reads"


def test_axes_may_cross_but_levels_must_be_consistent(tmp_path, digits_scenario):
    grid = {"faults.poisoned": [0.0, 0.5], "faults.poison": ["random", "flipped"]}
    assert len(cells(tmp_path, digits_scenario, grid=grid)) == 4
    level = {"fusion.strategy": "local", "fusion.ce_weight": 1.0}
    with pytest.raises(UserError, match=r"cell 'kind=b.*fusion\.ce_weight: must be left out"):
        cells(tmp_path, digits_scenario, variants={"kind": {"a": {"fusion.strategy": "knfu"}, "b": level}})
