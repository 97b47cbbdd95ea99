"""``executor = "auto"`` measures once and records its choice."""

from __future__ import annotations

import json

import pytest

import fedkd
import fedkd.clients.local.select_executor as module
from fedkd.cli.doctor import _executor_rows
from fedkd.clients.local.executor_cache import (
    cache_step,
    cached_step,
    executor_cache_path,
    read_step_measurements,
)
from fedkd.clients.local.select_executor import select_executor
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.federation.apps.context import _load_once
from fedkd.plan.load import parse_plan
from fedkd.scenario.identity import result_relevant_keys, with_choices_of
from fedkd.tracking.events import RunObserver
from fedkd.tracking.run_folder import read_run_plan
from fedkd.training.fast.benchmark_executors import StepSeconds

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def scenario(**training) -> dict:
    return {
        "name": "auto",
        "rounds": 1,
        "data": {
            "dataset": "digits",
            "clients": 5,
            "partition": {"samples_per_client": 30},
            "transfer": {"size": 20},
        },
        "clients": [{"model": "mlp", "args": {"hidden": [8]}, "share": 3}, {"model": "lenet", "share": 2}],
        "training": {"batch_size": 8, "executor": "auto", "vmap_size": 2, **training},
        "fusion": {"strategy": "fedmd"},
        "engine": {"kind": "inline"},
    }


@pytest.fixture
def results(monkeypatch) -> list[StepSeconds | None]:
    """Say beforehand what will be measured, the last again and again; what was asked for is noted."""
    told: list[StepSeconds | None] = []

    def benchmark_executors(jobs, together, clock, fast) -> StepSeconds | None:
        assert all(job.batch_size == 8 for job in jobs) and together == len(jobs) == len({*map(id, jobs)})
        return told.pop(0) if len(told) > 1 else told[0]

    monkeypatch.setattr(module, "benchmark_executors", benchmark_executors)
    return told


class Lines(RunObserver):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def choice(**training) -> module.ExecutorChoice:
    plan = parse_plan(scenario(**training))
    return select_executor(plan, load_data(plan.scenario))


def test_groups_choose_the_executor_by_their_total_step_time(results):
    # Three clients with the MLP, two with the LeNet: what the first lose, the others do not make up for.
    results[:] = [StepSeconds(1.0, 2.0), StepSeconds(2.0, 1.0)]
    assert choice().executor == "loop"
    results[:] = [StepSeconds(1.0, 2.0), StepSeconds(4.0, 1.0)]
    assert choice(lr=0.1, optimizer="sgd").executor == "vectorised"  # 3 + 8 against 6 + 2


def test_unvectorisable_groups_do_not_influence_the_choice(results):
    results[:] = [StepSeconds(9.0, 1.0), None]
    assert choice().executor == "vectorised"
    results[:] = [None]
    found = choice(optimizer="sgd")
    assert found.executor == "loop" and "cannot train together" in found.told


def test_measurements_are_reused_until_something_changes(results):
    results[:] = [StepSeconds(9.0, 1.0)]
    assert choice().executor == "vectorised"
    results[:] = [StepSeconds(1.0, 9.0)]
    assert choice().executor == "vectorised"
    assert choice(optimizer="sgd").executor == "loop"
    assert len(read_step_measurements()) == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 2, "measured": []}',
        '{"version": 2, "measured": 3}',
        '{"version": 2, "measured": [1, {"what": {}, "loop": -1, "vectorised": 1}]}',
        '{"version": 2, "measured": [{"what": {}, "loop": true, "vectorised": 1e999}]}',
        "[" * 100_000,
    ],
)
def test_a_malformed_cache_counts_as_empty(text):
    executor_cache_path().parent.mkdir(parents=True)
    executor_cache_path().write_text(text)
    assert read_step_measurements() == [] and cached_step({}) is None
    cache_step({"model": "mlp"}, (1.0, 2.0))
    assert cached_step({"model": "mlp"}) == (1.0, 2.0)


def test_an_unwritable_cache_is_skipped(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache_step({}, (1.0, 2.0))
    assert read_step_measurements() == []


def test_the_choice_is_recorded_and_repeats_byte_for_byte(results, tmp_path):
    results[:] = [StepSeconds(9.0, 1.0)]
    observer = Lines()
    first = fedkd.run(scenario(), out=tmp_path / "auto", observers=[observer])
    assert read_run_plan(first.folder).scenario.training.executor == "vectorised"
    assert (
        sum("executor vectorised: training together is 9.00 times as fast" in x for x in observer.lines) == 1
    )
    said = fedkd.run(scenario(executor="vectorised"), out=tmp_path / "said")
    again = fedkd.run(first.folder / "scenario.toml", out=tmp_path / "again")
    metrics = {(run.folder / "metrics.jsonl").read_bytes() for run in (first, said, again)}
    assert len(metrics) == 1
    longer = fedkd.resume(first.folder, rounds=2)
    assert longer.summary["rounds"] == 2


def test_a_run_folder_with_an_unresolved_executor_is_refused(results, tmp_path):
    results[:] = [StepSeconds(9.0, 1.0)]
    folder = fedkd.run(scenario(), out=tmp_path / "run").folder
    file = folder / "scenario.toml"
    file.write_text(file.read_text().replace('executor = "vectorised"', 'executor = "auto"'))
    with pytest.raises(UserError, match="executor was 'vectorised' and is 'auto'"):
        fedkd.resume(folder)


def test_a_bench_cell_resumes_with_its_recorded_executor():
    cell, run = (parse_plan(scenario(executor=name)).scenario for name in ("auto", "vectorised"))
    assert with_choices_of(run, result_relevant_keys(cell)) == result_relevant_keys(run)
    assert with_choices_of(cell, result_relevant_keys(run)) == result_relevant_keys(run)


def test_clients_that_may_fail_train_in_the_loop():
    plan = parse_plan(scenario() | {"faults": {"on_client_error": "skip"}})
    assert select_executor(plan, load_data(plan.scenario)).executor == "loop"


def test_the_executor_choice_is_measured():
    found = choice()
    assert [what["model"] for what, _ in read_step_measurements()] == ["mlp", "lenet"]
    assert all(loop > 0 and vectorised > 0 for _, (loop, vectorised) in read_step_measurements())
    assert found.told.startswith(found.executor) and "times as fast as the loop" in found.told


@pytest.mark.slow  # an actor for the measurement and one for the run
def test_an_actors_node_decides_the_choice_on_a_cluster(ray_session, tmp_path):
    observer = Lines()
    tables = scenario() | {"faults": {"on_client_error": "skip"}}  # so that nothing is measured there
    tables["engine"] = {"kind": "ray", "actors": 1, "cpus_per_actor": 0.5, "gpus_per_actor": 0.0}
    run = fedkd.run(tables, out=tmp_path / "run", observers=[observer])
    assert read_run_plan(run.folder).scenario.training.executor == "loop"
    assert any("measuring on the cluster" in line for line in observer.lines)
    assert "executor loop: clients that may be skipped or retried train one by one" in observer.lines


def test_flower_runtimes_use_the_loop(tmp_path):
    path = tmp_path / "auto.toml"
    path.write_text('[training]\nexecutor = "auto"\n')
    assert _load_once(str(path), "").scenario.training.executor == "loop"


def test_doctor_shows_the_measured_executors():
    assert "no measurements yet" in "".join(_executor_rows())
    what = {"model": "mlp", "batch_size": 8, "vmap_size": 2, "device": "cpu"}
    cache_step(what, (0.002, 0.001))
    *_, row = _executor_rows()
    assert row.strip() == (
        "mlp, batches of 8, 2 clients on cpu: 2 ms per step and client in the loop, 1 vectorised"
    )
    assert json.loads(executor_cache_path().read_text())["version"] == 2
