from __future__ import annotations

from dataclasses import replace

import pytest

from fedkd.benchmark.cells import compared_axes, make_axes, make_cells, resolve_baseline
from fedkd.benchmark.schema import load_bench
from fedkd.continual.registry import learner_hyperparameters
from fedkd.errors import UserError
from fedkd.plan.load import parse_scenario
from fedkd.scenario.identity import scenario_digest


def cells_of(write, tables, overrides=()):
    return make_cells(load_bench(write(tables), overrides))


def test_every_combination_is_a_cell_and_the_first_seed_comes_first(write, tables):
    tables["grid"]["data.partition.alpha"] = [0.5, 5]
    cells = cells_of(write, tables | {"seeds": [4, 2]})
    assert [cell.label for cell in cells] == [
        f"strategy={strategy} alpha={alpha} seed={seed}"
        for seed in (4, 2)
        for strategy in ("local", "knfu")
        for alpha in ("0.5", "5")
    ]
    assert len({cell.folder_name for cell in cells}) == 8
    for cell in cells:
        assert cell.scenario.seed == cell.seed
        assert cell.scenario.fusion.strategy == cell.levels["fusion.strategy"].value
        assert cell.scenario.data.partition.alpha == cell.levels["data.partition.alpha"].value
        assert cell.scenario.data.partition.samples_per_client == 60


def test_the_hash_ignores_the_place_and_engine_of_a_cell(write, tables):
    here = cells_of(write, tables)
    tables["scenario"] |= {"name": "other", "checkpoint_every": 1}
    tables["scenario"]["engine"] = {"kind": "inline", "cpus_per_actor": 2.0}
    tables["scenario"]["tracking"] = {"wandb": {"mode": "disabled"}}
    there = cells_of(write, tables | {"name": "renamed"})
    assert [cell.hash for cell in here] == [cell.hash for cell in there]
    assert [cell.folder_name for cell in here] == [cell.folder_name for cell in there]


@pytest.mark.parametrize("override", ["training.lr=0.02", "rounds=3", "data.transfer.size=61", "seeds=[5,6]"])
def test_the_hash_depends_on_result_relevant_keys(override, write, tables):
    before = {cell.hash for cell in cells_of(write, tables)}
    assert before.isdisjoint(cell.hash for cell in cells_of(write, tables, [override]))


def test_spelling_out_a_default_keeps_the_hash(digits_scenario):
    spelt = digits_scenario | {"clients_per_round": 4, "fusion": {"strategy": "knfu", "beta": 10.0}}
    plain = digits_scenario | {"clients_per_round": 4}
    assert scenario_digest(parse_scenario(spelt)) == scenario_digest(parse_scenario(plain))


def test_hyperparameters_do_not_leak_into_another_strategy(write, tables):
    tables["set"] = {"fusion.distill_epochs": 5}
    tables["grid"] = {"fusion.strategy": ["fedmd", "knfu"]}
    fedmd, knfu = (cell.scenario.fusion for cell in cells_of(write, tables | {"seeds": 1, "baseline": {}}))
    assert "beta" not in fedmd.model_extra and knfu.model_extra["beta"] == 3.0
    assert fedmd.distill_epochs == knfu.distill_epochs == 5


def test_hyperparameters_do_not_leak_into_another_learner(write, tables):
    del tables["scenario"]["rounds"]
    tables["scenario"]["continual"] = {"learner": "ewc", "strength": 5.0, "rounds_per_task": 2}
    tables["grid"] = {"continual.learner": ["naive", "ewc", "si"]}
    cells = cells_of(write, tables | {"seeds": 1, "baseline": {"continual.learner": "naive"}})
    naive, ewc, si = (cell.scenario.continual for cell in cells)
    defaults = {parameter.name: parameter.default for parameter in learner_hyperparameters("si")}
    assert naive.model_extra == {} and ewc.model_extra["strength"] == 5.0
    assert si.model_extra == defaults and "strength" in defaults
    assert naive.rounds_per_task == si.rounds_per_task == 2
    assert {cell.scenario.checkpoint_every for cell in cells} == {10}, "as many rounds as the tasks take"


def test_hyperparameters_that_the_bench_sets_hold_in_every_cell(write, tables):
    del tables["scenario"]["rounds"]
    tables["scenario"]["continual"] = {"learner": "ewc", "strength": 5.0}
    tables["set"] = {"continual": {"learner": "exssnet", "mask_lr": 0.5}}
    tables["grid"] = {"continual.learner": ["supsup", "exssnet"]}
    cells = cells_of(write, tables | {"seeds": 1, "baseline": {}}, ["continual.density=0.25"])
    extras = [cell.scenario.continual.model_extra for cell in cells]
    assert [(extra["mask_lr"], extra["density"]) for extra in extras] == [(0.5, 0.25), (0.5, 0.25)]


def test_a_hyperparameter_that_the_bench_sets_must_suit_every_cell(write, tables):
    tables["set"] = {"fusion.beta": 2.0}
    tables["grid"] = {"fusion.strategy": ["knfu", "fedmd"]}
    with pytest.raises(UserError, match=r"fedmd.*fusion\.beta: unknown key for strategy 'fedmd'"):
        cells_of(write, tables | {"seeds": 1, "baseline": {}})


def test_heads_and_hyperparameters_of_a_learner_can_be_axes(write, tables):
    del tables["scenario"]["rounds"]
    tables["scenario"]["continual"] = {"learner": "ewc"}
    tables["grid"] = {"continual.head": ["task", "class"], "continual.strength": [1.0, 10.0]}
    cells = cells_of(write, tables | {"seeds": 1, "baseline": {"continual.strength": 1.0}})
    streams = [cell.scenario.continual for cell in cells]
    assert [(stream.head, stream.model_extra["strength"]) for stream in streams] == [
        ("task", 1.0),
        ("task", 10.0),
        ("class", 1.0),
        ("class", 10.0),
    ]


def test_variants_name_sets_of_keys(write, tables):
    del tables["grid"]
    tables["variants"] = {
        "method": {
            "KnFu β=2": {"fusion.beta": 2.0},
            "FedAvg": {"fusion": {"strategy": "flwr:FedAvg"}, "clients": [{"model": "lenet"}]},
            "plain FedMD": {"fusion!": {"strategy": "fedmd"}},
        }
    }
    tables["scenario"]["fusion"]["distill_epochs"] = 4
    tables |= {"baseline": {"method": "FedAvg"}, "seeds": 1}
    knfu, fedavg, fedmd = cells_of(write, tables)
    assert (knfu.scenario.fusion.model_extra["beta"], knfu.scenario.fusion.distill_epochs) == (2.0, 4)
    assert (fedavg.scenario.clients[0].model, fedavg.scenario.fusion.distill_epochs) == ("lenet", 1)
    assert fedmd.scenario.fusion.distill_epochs == 1
    assert knfu.scenario.name == "KnFu-2-seed1"


def test_command_line_values_override_the_bench_file(write, tables):
    tables["set"] = {"rounds": 7, "training": {"lr": 0.5}}
    cells = cells_of(write, tables, ["rounds=9", "seeds=1"])
    assert len(cells) == 2
    assert all(cell.scenario.rounds == 9 and cell.scenario.training.lr == 0.5 for cell in cells)
    assert all(cell.scenario.checkpoint_every == 9 for cell in cells)


def test_axes_can_be_set_on_the_command_line(write, tables):
    alphas = "grid.data.partition.alpha=[0.5,1.5]"
    cells = cells_of(write, tables, ['grid.fusion.strategy=["local"]', alphas])
    assert {cell.levels["data.partition.alpha"].value for cell in cells} == {0.5, 1.5}
    assert {cell.scenario.fusion.strategy for cell in cells} == {"local"}


def test_the_compared_axis_follows_the_baseline_and_the_strategy(write, tables):
    tables["grid"]["data.partition.alpha"] = [0.5, 5]
    bench = load_bench(write(tables | {"baseline": {"data.partition.alpha": 5}}))
    axes = make_axes(bench)
    assert compared_axes(axes, resolve_baseline(bench, axes)) == ("data.partition.alpha",)
    assert compared_axes(axes, {}) == ("fusion.strategy",)
    assert compared_axes(axes[1:], {}) == ("data.partition.alpha",)
    assert compared_axes((), {}) == ()
    learner = replace(axes[0], name="continual.learner")
    assert compared_axes((axes[1], learner), {}) == ("continual.learner",)


MALFORMED = {
    "one scenario": (
        {"grid": {"engine.kind": ["ray", "inline"]}, "baseline": {}},
        "never change a result",
    ),
    "level twice": ({"grid": {"rounds": [1, 1]}, "baseline": {}}, "grid.rounds: 1 is listed twice"),
    "formula": (
        {"grid": {}, "variants": {"s": {'=HYPERLINK("x")': {"seed": 3}, "b": {"seed": 4}}}, "baseline": {}},
        "cannot stand in a table",
    ),
    "formula after a number": (
        {
            "grid": {},
            "variants": {"s": {"-2+3+cmd|' /C calc'!A0": {"seed": 3}, "b": {"seed": 4}}},
            "baseline": {},
        },
        "cannot stand in a table",
    ),
    "formula after a space": (
        {"grid": {}, "variants": {"s": {" =1": {"seed": 3}, "b": {"seed": 4}}}, "baseline": {}},
        "cannot stand in a table",
    ),
    "two lines": (
        {"grid": {}, "variants": {"s": {"a\nb": {"seed": 3}, "b": {"seed": 4}}}, "baseline": {}},
        "cannot stand in a table",
    ),
    "seed as axis": ({"grid": {"seed": [1, 2]}, "baseline": {}}, "'seed' cannot be an axis"),
    "bad value": (
        {"grid": {"training.lr": [0.1, -1.0]}, "baseline": {}},
        "lr=-1 seed=1': training.lr: must be > 0",
    ),
    "bad key": (
        {"grid": {"training.rl": [0.1]}, "baseline": {}},
        "training.rl: unknown key; did you mean 'lr'",
    ),
    "leaking": (
        {"grid": {"fusion.strategy": ["local", "knfu"], "fusion.beta": [1.0]}},
        "cell 'strategy=local beta=1 seed=1': fusion.beta: unknown key for strategy 'local'",
    ),
    "cannot be interrupted": (
        {"grid": {"training.lr": [0.1]}, "set": {"engine": {"kind": "ray"}, "faults": {"timeout": 5}}},
        "faults.timeout: must be left out: a cell runs in one process",
    ),
    "impossible": (
        {"grid": {"fusion.strategy": ["local", "flwr:FedAvg"]}, "set": {"clients": [{"model": "mlp"}, {}]}},
        "cell 'strategy=flwr:FedAvg seed=1': clients: 'flwr:FedAvg' averages parameters",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_impossible_cells_are_refused_by_name(changes, message, write, tables):
    with pytest.raises(UserError) as caught:
        cells_of(write, tables | changes)
    assert str(caught.value).startswith(str(write(tables))) and message in str(caught.value)


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ({"fusion.strtegy": "local"}, "no axis 'fusion.strtegy'; did you mean 'fusion.strategy'?"),
        ({"fusion.strategy": "locl"}, "has no value 'locl'; did you mean 'local'?"),
    ],
)
def test_a_baseline_must_be_a_cell(baseline, message, write, tables):
    bench = load_bench(write(tables | {"baseline": baseline}))
    with pytest.raises(UserError, match=f"baseline: .*{message}".replace("?", r"\?")):
        resolve_baseline(bench, make_axes(bench))


def test_an_axis_cannot_be_set_for_all_cells(write, tables):
    with pytest.raises(UserError, match=r"fusion\.strategy: varies along the axis"):
        cells_of(write, tables, ["fusion.strategy=fedmd"])
    of_clients = {"small": {"clients": [{"model": "mlp", "args": {"hidden": [3]}}]}, "usual": {}}
    with pytest.raises(UserError, match=r"clients\.0\.args\.hidden: varies along the axis 'size'"):
        cells_of(write, tables | {"variants": {"size": of_clients}}, ["clients.0.args.hidden=[4]"])


@pytest.mark.parametrize("seeds", [10**9, 2**62])
def test_too_many_cells_are_refused_before_they_are_made(seeds, tables, write):
    bench = load_bench(write(tables | {"seeds": seeds}))
    with pytest.raises(
        UserError, match=f"seeds: {seeds:,} seeds for each combination make .* at most 100,000"
    ):
        make_cells(bench)
