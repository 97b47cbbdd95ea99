"""Searches from end to end: in this process, on Ray, stopped, with trials that diverge."""

from __future__ import annotations

import csv
import json
import shutil
import tomllib
from pathlib import Path
from statistics import fmean

import pytest
import tomli_w

import fedkd
from fedkd.benchmark import scheduler
from fedkd.cli.main import main
from fedkd.errors import Interrupted, RunFailed, UserError
from fedkd.plan.load import load_scenario
from fedkd.scenario.load import read_toml
from fedkd.tracking.recorder import read_metrics
from fedkd.tuning import runner as module
from fedkd.tuning.schema import load_search
from fedkd.tuning.trials import TRIAL, read_record

pytestmark = pytest.mark.usefixtures("no_report")

pytest.importorskip("optuna")


def tables_of(digits) -> dict:
    """A search of six short trials, in batches of three."""
    data = digits["data"] | {"clients": 2, "partition": {"scheme": "iid", "samples_per_client": 40}}
    scenario = digits | {"data": data | {"test_size": 40}, "fusion": {"strategy": "fedmd"}}
    return {
        "name": "small",
        "trials": 6,
        "together": 3,
        "startup": 3,
        "warmup": 0,
        "parallel": False,
        "scenario": scenario,
        "search": {"training.lr": {"low": 1e-4, "high": 0.1, "log": True}, "fusion.distill_epochs": [0, 1]},
    }


@pytest.fixture
def tables(digits_scenario) -> dict:
    return tables_of(digits_scenario)


def write(folder: Path, tables: dict) -> Path:
    path = folder / "tune.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


@pytest.fixture(scope="module")
def ran(make_digits_scenario, tmp_path_factory) -> module.TuneResult:
    """A search that ran in this process; tests that change its folder take a copy."""
    folder = tmp_path_factory.mktemp("ran")
    return fedkd.tune(write(folder, tables_of(make_digits_scenario())), out=folder / "out")


def told(folder: Path) -> dict:
    return json.loads((folder / "search.json").read_text())


def test_trials_are_measured_on_held_out_samples(ran):
    assert [trial.number for trial in ran.trials] == list(range(6))
    assert ran.trials[0].values == {"training.lr": 0.01, "fusion.distill_epochs": 1}, "the base itself"
    for trial in ran.trials:
        (folder,) = trial.folders
        assert read_toml(folder / "scenario.toml")["data"]["validation"] == 0.2
        if trial.status == "done":
            assert json.loads((folder / "summary.json").read_text())["tested_on"] == "validation"
            own = [
                row["value"]
                for row in read_metrics(folder)
                if (row["round"], row["split"], row["metric"]) == (2, "local", "accuracy")
                and row["client"] is not None
            ]
            assert trial.value == pytest.approx(fmean(own)) and len(own) == 2
    done = [trial.value for trial in ran.trials if trial.status == "done"]
    assert ran.best.value == max(done)


def test_the_best_scenario_trains_on_everything(ran):
    scenario = load_scenario(ran.scenario)
    assert scenario.data.validation is None and scenario.name == "small-best"
    assert scenario.training.lr == ran.best.values["training.lr"]
    assert scenario.fusion.distill_epochs == ran.best.values["fusion.distill_epochs"]
    assert (scenario.seed, scenario.engine.kind, scenario.checkpoint_every) == (7, "inline", 1)


def test_the_table_is_written_as_markdown_and_csv(ran):
    assert (ran.folder / "table.md").read_text() == ran.table()
    first = ran.table().splitlines()[2]
    assert first.startswith(f"| {ran.best.number} |") and "**" in first
    assert "test samples were not looked at" in ran.table() and "and 4 more" in ran.table(2)
    rows = list(csv.DictReader((ran.folder / "trials.csv").open()))
    assert [float(row["training.lr"]) for row in rows] == [t.values["training.lr"] for t in ran.trials]
    assert "<table>" in ran._repr_html_() and f"{100 * ran.best.value:.1f} %" in repr(ran)
    assert told(ran.folder)["best"]["trial"] == ran.best.number


def test_a_repeated_call_resumes_and_may_add_trials(ran, tables, tmp_path, monkeypatch):
    out = Path(shutil.copytree(ran.folder, tmp_path / "out"))
    path, before = write(tmp_path, tables), told(out)
    shutil.rmtree(ran_folder(out, ran, 4))
    (ran_folder(out, ran, 1) / TRIAL).write_text("{")
    fedkd.tune(path, out=out)
    assert told(out) == before

    monkeypatch.setattr(scheduler, "run_in_turn", lambda *arguments: pytest.fail("nothing is left to run"))
    fedkd.tune(path, out=out)
    monkeypatch.undo()
    more = fedkd.tune(path, out=out, overrides=["trials=7"])
    assert told(out)["trials"][:6] == before["trials"] and len(more.trials) == 7


def ran_folder(out: Path, ran: module.TuneResult, number: int) -> Path:
    return out / ran.trials[number].folders[0].relative_to(ran.folder)


def test_a_stopped_search_resumes_to_the_same_result(ran, tables, tmp_path, monkeypatch):
    started, run_in_turn = [], scheduler.run_in_turn

    def stopped(jobs, progress, work):
        started.append(len(jobs))
        if len(started) == 2:
            first = run_in_turn(dict([*jobs.items()][:1]), progress, work)
            assert [outcome.status in ("done", "pruned") for outcome in first.values()] == [True]
            return first
        return run_in_turn(jobs, progress, work)

    monkeypatch.setattr(scheduler, "run_in_turn", stopped)
    path = write(tmp_path, tables)
    with pytest.raises(Interrupted, match="4/6 done; go on with the same command"):
        fedkd.tune(path, out=tmp_path / "out")
    assert not (tmp_path / "out" / "best.toml").exists()
    monkeypatch.undo()
    fedkd.tune(path, out=tmp_path / "out")
    assert told(tmp_path / "out") == told(ran.folder)


def test_the_order_of_finished_trials_has_no_effect(ran, tables, tmp_path, monkeypatch):
    run_in_turn = scheduler.run_in_turn

    def backwards(jobs, progress, work):
        return run_in_turn(dict(reversed(jobs.items())), progress, work)

    monkeypatch.setattr(scheduler, "run_in_turn", backwards)
    fedkd.tune(write(tmp_path, tables), out=tmp_path / "out")
    assert told(tmp_path / "out") == told(ran.folder)


def test_a_search_on_ray_is_the_same(ran, tables, ray_session, tmp_path):
    fedkd.tune(write(tmp_path, tables | {"parallel": True}), out=tmp_path / "out")
    assert told(tmp_path / "out") == told(ran.folder)


def test_diverged_trials_rank_last_and_do_not_stop_the_search(tables, tmp_path):
    tables["search"] = {"training.lr": [0.01, 1e30]}
    tables["scenario"] = tables["scenario"] | {"rounds": 1, "fusion": {"strategy": "local"}}
    result = fedkd.tune(write(tmp_path, tables | {"trials": 9, "seeds": [1, 2]}), out=tmp_path / "out")
    states = {trial.values["training.lr"]: trial.status for trial in result.trials}
    assert states == {0.01: "done", 1e30: "diverged"} and result.best.values == {"training.lr": 0.01}
    twice = [trial for trial in result.trials if trial.values["training.lr"] == 0.01]
    assert len(twice[0].folders) == 2
    values = [read_record(folder).value for folder in twice[0].folders]  # type: ignore[union-attr]
    assert twice[0].value == fmean(values)
    with pytest.raises(RunFailed, match="none of 2 trials reached its end"):
        only = {"training.lr": [1e29, 1e30]}
        fedkd.tune(write(tmp_path, tables | {"trials": 2, "search": only}), out=tmp_path / "none")


def test_other_trial_failures_stop_the_search(tables, tmp_path, monkeypatch):
    broken = scheduler.CellOutcome("failed", error="its Ray worker died")
    monkeypatch.setattr(scheduler, "run_in_turn", lambda jobs, progress, work: dict.fromkeys(jobs, broken))
    with pytest.raises(RunFailed, match=r"trial 0: .*its Ray worker died.*tries it again"):
        fedkd.tune(write(tmp_path, tables), out=tmp_path / "out")


def test_another_search_is_not_overwritten(ran, tables, tmp_path):
    out = Path(shutil.copytree(ran.folder, tmp_path / "out"))
    with pytest.raises(UserError, match="holds another search: search was different"):
        fedkd.tune(write(tmp_path, tables), out=out, search={"training.batch_size": [10, 20]})
    (out / "tune.toml").write_text("=")
    with pytest.raises(UserError, match="cannot be read"):
        fedkd.tune(write(tmp_path, tables), out=out)


# The file and the command line ------------------------------------------------------------------------


def test_a_scenario_is_searched_as_it_stands(digits_toml, capsys, tmp_path):
    words = ["tune", str(digits_toml), "--search", "training.lr=log:1e-4..1e-1", "fusion.beta=0..20"]
    assert main([*words, "--trials", "3", "--dry-run", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "training.lr: 0.0001 to 0.1 (log)" in shown and "trials   3, 4 at a time" in shown
    assert "first    the base: training.lr=0.01, fusion.beta=10" in shown
    assert not (tmp_path / "out").exists()


def test_a_resolved_search_is_the_same(ran):
    again = load_search(ran.folder / "tune.toml")
    assert again.space == ran.search.space and list(again.seeds) == list(ran.search.seeds)
    assert tomllib.loads(module.dump_search(again)) == tomllib.loads(module.dump_search(ran.search))


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"metric": "accuracy_global"}, [], "metric: 'accuracy_global' is measured on test samples"),
        ({}, ["--metric", "accuracy_local"], "metric: 'accuracy_local' is measured on test samples"),
        ({"trails": 3}, [], "trails: unknown key; did you mean 'trials'?"),
        ({"validation": 1.0}, [], "validation: must be < 1, got 1.0"),
        ({"search": {"training.lr": {"low": 0, "high": 1}}}, [], "search.training.lr: must be > 0, got 0"),
        ({"search": {"training.lrr": [1, 2]}}, [], "search.training.lrr: unknown key; did you mean 'lr'?"),
        ({"set": {"training.lr": 0.1}}, [], "training.lr: is searched"),
        ({"base": "other.toml"}, [], "base: needs one base scenario"),
        ({}, ["--set", "seed=-1"], "seed: must be an integer ≥ 0, got -1"),
        (
            {"search": {"fusion.strategy": ["fedmd", "knfu"], "fusion.beta": [1.0, 2.0]}},
            [],
            "search.fusion.beta: unknown key for strategy 'fedmd'",
        ),
    ],
)
def test_a_wrong_search_gives_one_line(changes, words, message, tables, tmp_path, capsys):
    path = write(tmp_path, tables | changes)
    assert main(["tune", str(path), *words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: {message}") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_commands_name_the_intended_one(tables, tmp_path, capsys):
    path = write(tmp_path, tables)
    for verb in ("run", "bench", "check"):
        assert main([verb, str(path)]) == 2
        assert f"run it with: fedkd tune {path}" in capsys.readouterr().err


def test_the_schema_of_a_search_covers_its_keys():
    from fedkd.tuning.schema import TuneFile, search_json_schema

    schema = search_json_schema()
    assert set(schema["properties"]) == set(TuneFile.model_fields)
    assert "validation/accuracy_local" in schema["properties"]["metric"]["enum"]
    assert "rounds" in schema["$defs"]["Scenario"]["properties"]
