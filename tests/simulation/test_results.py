"""What a run returns shows itself, becomes a data frame, and is started with values of one's own."""

from __future__ import annotations

import sys
import types

import pytest

import fedkd
from fedkd.errors import UserError
from fedkd.plan.load import parse_plan, plan_with_changes
from fedkd.simulation.results import RunResult, frame_of
from fedkd.tracking.events import RoundReport, RunReport
from fedkd.tracking.html import html_table, markdown_to_html
from fedkd.tracking.live import NotebookProgress
from fedkd.tracking.progress import make_progress

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(scope="module")
def result(make_digits_scenario, tmp_path_factory):
    tables = make_digits_scenario() | {"clients": [{"model": "mlp"}, {"model": "lenet"}]}
    return fedkd.run(tables, out=tmp_path_factory.mktemp("result") / "run", rounds=1, progress=False)


# Values of one's own ----------------------------------------------------------------------------------------


def test_overrides_change_only_their_values(digits_scenario):
    plan = plan_with_changes(
        digits_scenario, {"rounds": 5, "fusion": {"beta": 2.5}, "data.transfer.size": 30}
    )
    assert (plan.scenario.rounds, plan.strategy.beta, plan.scenario.data.transfer.size) == (5, 2.5, 30)
    assert plan.scenario.data.transfer.source == "holdout" and plan.scenario.training.lr == 0.01
    assert digits_scenario["rounds"] == 2, "what was given is left as it was"


def test_overrides_drop_derived_values_of_a_resolved_scenario(digits_scenario):
    digits_scenario["fusion"]["beta"] = 3.0
    scenario = parse_plan(digits_scenario).scenario
    assert plan_with_changes(scenario, {"seed": 9}).strategy.beta == 3.0
    assert plan_with_changes(scenario, {"fusion.strategy": "fedmd"}).strategy.name == "fedmd"
    stream = {"learner": "ewc", "strength": 7.0, "tasks": {"kind": "split", "count": 2}}
    del digits_scenario["rounds"]
    scenario = parse_plan(digits_scenario | {"continual": stream}).scenario
    longer = plan_with_changes(scenario, {"continual": {"learner": "naive", "rounds_per_task": 3}})
    assert (longer.scenario.rounds, longer.learner.name) == (6, "naive")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rounds": 0}, "rounds: must be ≥ 1, got 0 (given as an argument)"),
        ({"ronds": 1}, "ronds: unknown key; did you mean 'rounds'? (given as an argument)"),
        ({"seed.x": 1}, "seed.x: seed is a single value"),
    ],
)
def test_wrong_overrides_are_refused(changes, told, digits_scenario):
    with pytest.raises(UserError) as caught:
        fedkd.run(digits_scenario, **changes)
    assert told in str(caught.value)


def test_run_shows_progress_by_default(digits_scenario, tmp_path, capsys):
    fedkd.run(digits_scenario, out=tmp_path / "a", rounds=1)
    assert "round  1/1  local " in capsys.readouterr().out
    fedkd.resume(tmp_path / "a", rounds=2, progress=False)
    assert capsys.readouterr().out == ""


# Names ------------------------------------------------------------------------------------------------------


def test_public_names_exist_and_are_listed():
    assert dir(fedkd) == sorted(fedkd.__all__)
    assert all(getattr(fedkd, name) is not None for name in dir(fedkd))
    assert issubclass(fedkd.EngineLost, fedkd.RunFailed) and issubclass(fedkd.UserError, fedkd.FedkdError)


# Data frames ------------------------------------------------------------------------------------------------


def test_metrics_convert_to_a_pandas_frame(result):
    pandas = pytest.importorskip("pandas")
    frame = result.frame("pandas")
    assert list(frame.columns) == ["round", "client", "task", "split", "metric", "value"]
    assert len(frame) == len(result.metrics()) and frame["client"].dtype == "Int64"
    accuracy = frame[(frame.metric == "accuracy") & frame.client.notna() & (frame.split == "local")]
    assert accuracy.value.mean() == pytest.approx(result.summary["final"]["accuracy_local"]["mean"])
    assert pandas.isna(frame.task).all()


def test_metrics_convert_to_a_polars_frame(result):
    polars = pytest.importorskip("polars")
    frame = result.frame("polars")
    assert frame.columns == ["round", "client", "task", "split", "metric", "value"]
    assert frame.height == len(result.metrics()) and frame["client"].dtype == polars.Int64


@pytest.mark.parametrize(
    ("there", "asked", "taken"),
    [
        ({"pandas", "polars"}, None, "pandas"),
        ({"polars"}, None, "polars"),
        ({"pandas", "polars"}, "polars", "polars"),
    ],
)
def test_the_installed_frame_library_is_used(there, asked, taken, monkeypatch):
    for name in ("pandas", "polars"):
        fake = types.SimpleNamespace(
            DataFrame=lambda columns, name=name, **_: (name, columns),
            array=lambda values, dtype: values,
        )
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr("fedkd.simulation.results.find_spec", lambda name: name if name in there else None)
    assert frame_of({"a": [1, None], "b": ["x", "y"]}, asked) == (taken, {"a": [1, None], "b": ["x", "y"]})


def test_a_frame_needs_pandas_or_polars(result, monkeypatch):
    monkeypatch.setattr("fedkd.simulation.results.find_spec", lambda name: None)
    with pytest.raises(UserError, match="neither pandas nor polars is installed; pip install pandas"):
        result.frame()
    with pytest.raises(UserError, match="polars is not installed"):
        result.frame("polars")
    with pytest.raises(UserError, match="library: must be 'pandas' or 'polars', got 'arrow'"):
        result.frame("arrow")


# Notebooks --------------------------------------------------------------------------------------------------


def test_a_result_displays_itself(result):
    html = result._repr_html_()
    mean = result.summary["final"]["accuracy_global"]["mean"]
    for told in (
        "<b>digits-test</b>, seed 7",
        "all clients",
        "lenet",
        f"{100 * mean:.1f} %",
        str(result.folder),
    ):
        assert told in html
    assert "local accuracy" not in html and "traffic" in html
    assert repr(result).startswith("<RunResult digits-test: accuracy_local=")
    assert "–" in RunResult(result.folder, {"name": "<b>"})._repr_html_()
    assert "&lt;b&gt;" in RunResult(result.folder, {"name": "<b>"})._repr_html_()


def test_html_is_escaped():
    html = html_table(["a", "<"], [["x", "1 & 2"]])
    assert '<th style="text-align:left">a</th><th style="text-align:right">&lt;</th>' in html
    assert '<td style="text-align:left">x</td><td style="text-align:right">1 &amp; 2</td>' in html


def test_a_result_converts_to_a_markdown_table():
    text = "# Bench\n\n| a \\| b | n |\n| --- | --: |\n| \\<i\\> | **1** |\n\nMeans.\n**Bold**: best."
    head, row = "<tr><th>a | b</th><th>n</th></tr>", "<tr><td>&lt;i&gt;</td><td><b>1</b></td></tr>"
    told = "<p>Means. <b>Bold</b>: best.</p>"
    assert markdown_to_html(text) == f"<h4>Bench</h4><table>{head}{row}</table>{told}"


def test_a_notebook_shows_a_live_display(result):
    now, shown = [0.0], []
    progress = NotebookProgress(shown.append, lambda: now[0])
    progress.message("loading")
    progress.run_started(parse_plan({"rounds": 3}).scenario, result.folder, 0)
    for done in range(4):
        progress.answered(1, "train", done, 1.0)
        progress.phase(1, "train", done, 4)
        now[0] += 0.2
    assert len(shown) == 3, "twice a second at most"
    assert "━" in shown[-1] and "round 1/3 · train 3/4 clients" in shown[-1]
    assert "loading" in shown[-1]
    progress.round_finished(
        RoundReport(1, 3, accuracy_local=0.5, accuracy_before_fusion_local=0.25, seconds=4.0)
    )
    assert "25.0 → 50.0 %" in shown[-1] and "8 s left" in shown[-1]
    progress.run_finished(RunReport(result.folder, result.summary))
    assert "━" not in shown[-1] and "traffic" in shown[-1]


def test_a_notebook_is_recognised_by_its_kernel(monkeypatch):
    shown = []
    handle = types.SimpleNamespace(update=lambda html: shown.append(("update", html)))

    def display(html, display_id):
        shown.append(("display", html))
        return handle

    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.HTML, ipython.display.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    progress = make_progress(quiet=False)
    progress.message("one")
    progress.message("two")
    assert [kind for kind, _ in shown] == ["display", "update"] and "two" in shown[-1][1]
    del shell.kernel  # on a terminal
    assert not isinstance(make_progress(quiet=False), NotebookProgress)
