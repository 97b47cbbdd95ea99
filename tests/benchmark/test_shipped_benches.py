"""Every shipped bench has a description and passes a dry run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from reports import undrawn, unpaged

from fedkd.benchmark.runner import BenchPlan, bench, plan_bench
from fedkd.cli.main import main
from fedkd.continual.registry import LEARNERS
from fedkd.fusion.capabilities import capabilities_of
from fedkd.fusion.registry import STRATEGIES
from fedkd.report.style import FORMATS

pytestmark = pytest.mark.usefixtures("no_rendering")

FOLDER = Path(__file__).resolve().parent.parent.parent / "scenarios" / "bench"
PATHS = sorted(FOLDER.glob("*.toml"))


SHORT = ["data.partition.samples_per_client=30", "data.test_size=30", "training.local_epochs=1"]
TWO_PAIRS = ["continual.tasks.count=2", "continual.tasks.classes_per_task=2"]
SHORT_STREAMS = {
    "learners-split-mnist": [*TWO_PAIRS, "clients.0.args.hidden=[20]", 'grid.continual.head=["class"]'],
    "learners-permuted-mnist": ["continual.tasks.count=2"],
    "kkt": ["continual.tasks.count=2", 'grid.continual.learner=["exssnet"]'],
    "backward-transfer": ["continual.tasks.count=2"],
    "federated-backward-transfer": [
        *("data.clients=3", "data.transfer.size=20", "training.local_epochs=1"),
        *("continual.tasks.count=3", "continual.rounds_per_task=1"),
        "grid.data.partition.samples_per_client=[30]",
    ],
    "permuted-100": ["set.continual.tasks.count=2"],
    "fot": [
        *("data.clients=4", "clients_per_round=2", "clients.0.args.hidden=[20]"),
        *("continual.tasks.count=2", "continual.rounds_per_task=1"),
    ],
}
"""What makes every cell of a bench of streams a matter of half a second."""
RUN = {"quickstart", *SHORT_STREAMS}
"""Benches that are run, shortened; of the others, one round of one cell is."""


@pytest.fixture(scope="module")
def plan_of() -> Callable[[Path], BenchPlan]:
    """Return a function from a bench file to its plan, which is made once."""
    return cache(plan_bench)


@pytest.fixture
def drawn_once(monkeypatch):
    """Have figures written in one format, as it is the files that take the time."""
    monkeypatch.setattr("fedkd.report.style.FORMATS", {"svg": FORMATS["svg"]})


def test_the_repository_ships_benches():
    assert {path.stem for path in PATHS} > RUN


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_shipped_bench_has_a_description_and_the_name_of_its_file(path, plan_of):
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line for line in lines if line.startswith("# "))
    assert lines[0].startswith("# ") and "on 2 cores" in comment
    plan = plan_of(path)
    assert plan.bench.spec.name == path.stem
    assert plan.bench.spec.baseline and len(plan.bench.seeds) > 1


@pytest.mark.parametrize("path", [path for path in PATHS if path.stem not in RUN], ids=lambda path: path.stem)
def test_a_shipped_bench_passes_a_dry_run(
    path, plan_of, tmp_path, capsys, small_data_root, read_once, monkeypatch
):
    monkeypatch.setenv("FEDKD_DATA", str(small_data_root))
    axes = {axis.name for axis in plan_of(path).axes}
    if plan_of(path).cells[0].scenario.data.partition.scheme == "natural":
        axes.add("data.partition.samples_per_client")  # of owners' sizes
    tiny = path.stem == "lifelong"  # its clients have a few samples
    short = [
        f"{key}=30"
        for key in ("data.partition.samples_per_client", "data.test_size")
        if key not in axes and not tiny
    ]
    file = tomllib.loads(path.read_text(encoding="utf-8"))
    grid = {key: levels for key, levels in file.get("grid", {}).items() if key not in file["baseline"]}
    narrow = [f"grid.{key}={json.dumps(levels[:1])}" for key, levels in grid.items()]
    words = ["bench", str(path), "--out", str(tmp_path / "out"), "--dry-run", "--set", "seeds=1"]
    words += [*short, *narrow]
    with undrawn(), unpaged():
        assert main(words) == 0
    assert "time   about" in capsys.readouterr().out


@pytest.mark.usefixtures("drawn_once")
def test_a_shortened_quickstart_bench_runs(tmp_path):
    short = ["data.clients=4", *SHORT, "fusion.distill_epochs=1", "rounds=1", "seeds=1", "parallel=false"]
    result = bench(FOLDER / "quickstart.toml", out=tmp_path, overrides=short)
    assert not result.failed and len(result.cells) == 12
    assert (tmp_path / "figures" / "heatmap-accuracy_global.svg").exists()
    assert (tmp_path / "report.html").exists()


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize("name", SHORT_STREAMS)
def test_a_shortened_stream_bench_runs(name, plan_of, tmp_path, small_data_root, read_once, monkeypatch):
    monkeypatch.setenv("FEDKD_DATA", str(small_data_root))
    path, own = FOLDER / f"{name}.toml", SHORT_STREAMS[name]
    varied = {key for axis in plan_of(path).axes for level in axis.levels for key in level.changes}
    short = [*(word for word in SHORT if word.partition("=")[0] not in varied), *own]
    with undrawn(), unpaged():
        result = bench(path, out=tmp_path, overrides=["seeds=1", "parallel=false", *short])
    assert not result.failed, [cell.outcome.error for cell in result.failed]
    shown = [shown for shown in result.study.metrics if shown.startswith("average_accuracy")]
    assert shown and all(run.final["average_accuracy"] >= 0 for run in result.study.runs)
    figures = {path.stem for path in (tmp_path / "figures").iterdir()}
    # A curve over tasks is of tasks that all clients meet in one order.
    in_order = all(cell.cell.scenario.continual.tasks.order == "same" for cell in result.cells)
    curves = {f"tasks-{name}" for name in shown} if in_order else set()
    assert figures >= {"accuracy-against-stored", *curves}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_benches_list_strategies_between_their_baselines(path, plan_of):
    """Whatever else varies, every table over strategies has learning alone and learning on all samples.

    With a stream the latter is a learner, `joint`, and no strategy.
    """
    plan = plan_of(path)
    compared = {cell.scenario.fusion.strategy for cell in plan.cells}
    streams = any(cell.scenario.continual is not None for cell in plan.cells)
    ends = {"local"} if streams else {"local", "centralized"}
    if len(compared) > 1:
        blocks: dict[tuple[str, ...], set[str]] = {}
        for cell in plan.cells:
            block = tuple(level.label for axis, level in cell.levels.items() if axis not in plan.compared)
            blocks.setdefault(block, set()).add(cell.scenario.fusion.strategy)
        assert all(strategies >= ends for strategies in blocks.values())


def test_the_full_benches_include_every_strategy(plan_of):
    """But for those that need a stream of tasks, a graph, or adapters."""
    benches = [plan_of(FOLDER / f"every-strategy-{kind}.toml") for kind in ("mixed", "alike")]
    named = {cell.scenario.fusion.strategy for plan in benches for cell in plan.cells}
    adapted = {n for n in STRATEGIES.builtin if "adapter" in capabilities_of(STRATEGIES.load(n)).needs}
    assert set(STRATEGIES.builtin) - named == {"fedmask", "fedweit", "gossip", "target"} | adapted


def test_the_full_bench_includes_every_learner(plan_of):
    cells = plan_of(FOLDER / "learners-split-mnist.toml").cells
    assert {cell.scenario.continual.learner for cell in cells} == set(LEARNERS.builtin)
