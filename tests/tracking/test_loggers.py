"""Loggers beside a run: what they are handed, and that none of their troubles is the run's."""

from __future__ import annotations

import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest

import fedkd
from fedkd.cli.catalogue import loggers
from fedkd.cli.main import main
from fedkd.errors import Interrupted, UserError
from fedkd.plan.plan import resolve_plan
from fedkd.scenario.schema import Scenario
from fedkd.simulation.scenario_check import check_plan
from fedkd.tracking.events import RoundReport, RunReport
from fedkd.tracking.loggers.background import BackgroundLogger
from fedkd.tracking.loggers.figures import FigureMaker
from fedkd.tracking.loggers.logger import GREY, Ending, Figures, LoggedRun, heat_map
from fedkd.tracking.loggers.registry import LOGGERS, LoggerKind, make_loggers, wanted_loggers
from fedkd.tracking.neighbours import write_neighbours
from fedkd.tracking.recorder import METRICS_FILE, Recorder

pytestmark = pytest.mark.usefixtures("no_report")

REPOSITORY = Path(__file__).resolve().parents[2]


class Notes:
    """A logger that keeps what it is handed; `failing` names a hook that raises, `holding` one that hangs."""

    def __init__(self, failing: str = "", holding: str = "") -> None:
        self.failing, self.holding = failing, holding
        self.go_on = threading.Event()
        self.runs: list[LoggedRun] = []
        self.figures: list[Figures] = []
        self.endings: list[Ending] = []
        self.threads: set[str] = set()

    def _did(self, hook: str) -> None:
        self.threads.add(threading.current_thread().name)
        if hook == self.failing:
            raise ConnectionError(f"{hook}\nis broken")
        if hook == self.holding:
            self.go_on.wait(30)

    def open(self, run: LoggedRun) -> None:
        self._did("open")
        self.runs.append(run)

    def log(self, figures: Figures) -> None:
        self._did("log")
        self.figures.append(figures)

    def close(self, ending: Ending) -> None:
        self._did("close")
        self.endings.append(ending)


def scenario_of(**tables) -> Scenario:
    return Scenario.model_validate({"name": "demo", "seed": 4, "rounds": 2, **tables})


def play(notes: Notes, folder: Path, *, rounds=(1, 2), resumed_from: int = 0, **options) -> list[str]:
    told: list[str] = []
    with BackgroundLogger("notes", notes, 10, told.append, **options) as logger:
        logger.run_started(scenario_of(), folder, resumed_from)
        for round in rounds:
            logger.round_finished(RoundReport(round, 2, accuracy_local=round / 4))
        logger.run_finished(RunReport(folder, {"seconds": 1.0}))
    return told


def test_a_logger_works_in_its_own_thread(tmp_path):
    notes = Notes()
    assert play(notes, tmp_path) == []
    assert [(found.round, found.values["local/accuracy"]) for found in notes.figures] == [(1, 0.25), (2, 0.5)]
    assert notes.endings == [Ending("done", 2, {"seconds": 1.0})]
    assert notes.threads == {"fedkd-notes"}
    assert (notes.runs[0].name, notes.runs[0].folder) == ("demo-seed4", tmp_path)


@pytest.mark.parametrize("failing", ["open", "log", "close"])
def test_the_first_failure_is_reported_and_the_run_continues(failing, tmp_path):
    notes = Notes(failing)
    assert play(notes, tmp_path) == [
        f"notes is switched off, the run continues: ConnectionError: {failing} is broken"
    ]
    assert notes.endings == []


def test_a_hanging_logger_does_not_block_the_run(tmp_path):
    notes = Notes(holding="log")
    told = play(notes, tmp_path, patience=0.2)
    notes.go_on.set()
    assert told == ["notes is still writing after 0.2 s; the run ends without it"]


def test_a_slow_logger_drops_rounds(tmp_path, monkeypatch):
    monkeypatch.setattr("fedkd.tracking.loggers.background.MOST_WAITING", 2)
    notes, told = Notes(holding="open"), list[str]()
    with BackgroundLogger("notes", notes, 0, told.append) as logger:
        logger.run_started(scenario_of(), tmp_path, 0)
        for round in range(1, 9):
            logger.round_finished(RoundReport(round, 8))
        notes.go_on.set()
    assert 1 <= len(notes.figures) <= 2 and notes.endings == [Ending("interrupted", 8)]
    assert told == [f"notes was too slow: {8 - len(notes.figures)} rounds were not logged"]


def test_repeated_rounds_are_logged_once(tmp_path):
    notes = Notes()
    with BackgroundLogger("notes", notes, 0) as logger:
        logger.run_started(scenario_of(), tmp_path, 0)
        for round in (1, 2, 3):
            logger.round_finished(RoundReport(round, 4))
        logger.went_back(scenario_of(), tmp_path, 1)
        for round in (2, 3, 4):
            logger.round_finished(RoundReport(round, 4))
    assert [found.round for found in notes.figures] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("error", "status"), [(Interrupted("stopped"), "interrupted"), (ValueError("no"), "failed")]
)
def test_loggers_receive_the_final_status(error, status, tmp_path):
    notes = Notes()
    with pytest.raises(type(error)), BackgroundLogger("notes", notes, 0) as logger:
        logger.run_started(scenario_of(), tmp_path, 1)
        raise error
    assert notes.endings == [Ending(status, 1)]


# Figures ----------------------------------------------------------------------------------------------


def test_pictures_cover_first_last_and_periodic_rounds(tmp_path):
    maker = FigureMaker(scenario_of(rounds=7), tmp_path, 0, 3)
    weights = np.array([[0.75, 0.25], [0.5, 0.5]])
    pictured = []
    for round in range(1, 8):
        write_neighbours(tmp_path, round, (0, 1), weights)
        (tmp_path / METRICS_FILE).touch()
        made = maker.figures(RoundReport(round, 7), (0, 0))
        if made.heat_maps:
            pictured.append(round)
            assert np.array_equal(made.heat_maps["fusion/weights"], weights)
    assert pictured == [1, 3, 6, 7]
    assert FigureMaker(scenario_of(), tmp_path, 0, 0).figures(RoundReport(1, 2), (0, 0)).heat_maps == {}


def test_histograms_use_the_rows_of_their_round(tmp_path):
    spans, start = [], 0
    with Recorder(tmp_path) as recorder:
        for round in (1, 2):
            for client, value in enumerate([0.1 * round, 0.2, float("nan")]):
                recorder.metric("accuracy", value, round=round, client=client, split="local")
                recorder.metric("loss", 9.0, round=round, client=client, split="local")
            recorder.metric("accuracy", 0.5, round=round, split="local")
            recorder.flush()
            stop = (tmp_path / METRICS_FILE).stat().st_size
            spans.append((start, stop))
            start = stop
    made = FigureMaker(scenario_of(), tmp_path, 0, 1).figures(RoundReport(2, 2), spans[1])
    assert {name: values.tolist() for name, values in made.histograms.items()} == {
        "clients/local/accuracy": [0.2, 0.2]
    }


GIVEN = [[1.0, 0.5, None], [0.75, 0.875, 0.25], [0.625, 0.5, 1.0]]
"""Accuracy on each task after each, the task given."""


def test_streams_are_logged_by_round_and_by_task(tmp_path):
    continual = {"tasks": {"count": 3}, "head": "task", "rounds_per_task": 2}
    maker = FigureMaker(scenario_of(rounds=6, continual=continual, data={"clients": 3}), tmp_path, 0, 10)
    (tmp_path / METRICS_FILE).touch()
    made = []
    for round in range(1, 6):
        task = (round - 1) // 2
        row = GIVEN[task] if round < 5 else []
        metrics = {
            f"accuracy_{protocol}/global/{t}": value * factor
            for t, value in enumerate(row)
            if value is not None
            for protocol, factor in (("task_incremental", 1.0), ("class_incremental", 0.5))
        }
        made.append(maker.figures(RoundReport(round, 6, metrics=metrics, task=task), (0, 0)))
    first, second, _, fourth, unmeasured = made
    average = float(np.mean([0.75, 0.875]))
    assert second.values["continual/average_accuracy_task_incremental"] == 1.0
    assert "continual/bwt_task_incremental" not in second.values
    assert fourth.values["continual/average_accuracy_class_incremental"] == average / 2
    assert fourth.of_task["by_task/average_accuracy_task_incremental"] == average
    assert fourth.of_task["by_task/bwt_class_incremental"] == -0.125
    assert first.of_task == {} and unmeasured.of_task == {}
    assert not any(name.startswith("continual/") for name in unmeasured.values)
    square = fourth.heat_maps["continual/accuracy_matrix_task_incremental"]
    assert np.isnan(square[2]).all() and np.isnan(square[0, 2]) and square[1].tolist() == [0.75, 0.875, 0.25]


def test_a_heat_map_is_dark_at_0_light_at_1_and_grey_at_nan():
    picture = heat_map(np.array([[0.0, 1.0], [np.nan, 7.0]]))
    assert picture.shape == (480, 480, 3) and picture.dtype == np.uint8
    dark, light = picture[0, 0].astype(int), picture[0, -1].astype(int)
    assert dark.sum() < light.sum()
    assert picture[-1, 0].tolist() == list(GREY) and picture[-1, -1].tolist() == light.tolist()
    assert heat_map(np.zeros((1000, 3))).shape == (1000, 3, 3)


# What a scenario asks for -----------------------------------------------------------------------------


def tracking(**loggers) -> Scenario:
    return scenario_of(tracking=loggers)


def test_every_tracking_table_has_a_logger_class():
    from fedkd.scenario.tracking import Tracking

    assert set(LOGGERS) == set(Tracking.model_fields)
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {kind.extra for kind in LOGGERS.values() if kind.extra} <= extras.keys()
    everyone = tracking(wandb={}, tensorboard={}, mlflow={})
    assert [kind.name for kind, _ in wanted_loggers(everyone)] == list(LOGGERS)
    assert len(make_loggers(everyone, print)) == len(LOGGERS)
    assert list(wanted_loggers(tracking(wandb={"mode": "disabled"}))) == []


def test_runs_of_a_bench_are_grouped_by_default():
    grouped = tracking(wandb={}, mlflow={"experiment": "mine"}).tracking.grouped("my-bench")
    assert grouped.wandb is not None and grouped.mlflow is not None and grouped.tensorboard is None
    assert (grouped.wandb.group, grouped.mlflow.experiment) == ("my-bench", "mine")


@pytest.fixture
def absent(monkeypatch):
    kind = LOGGERS["tensorboard"]
    gone = LoggerKind(kind.name, kind.summary, "no_such_package", kind.extra, kind.logger)
    monkeypatch.setitem(LOGGERS, "tensorboard", gone)


def test_a_missing_logger_package_is_refused_before_a_run(
    absent, digits_toml, digits_scenario, tmp_path, capsys
):
    digits_toml.write_text(digits_toml.read_text() + "\n[tracking.tensorboard]\n")
    how = "in a clone of fedkd: pip install '.[tensorboard]'"
    told = f"tracking.tensorboard: no_such_package is not installed; {how}"
    for words in (["check", digits_toml], ["run", digits_toml, "--out", tmp_path / "run"]):
        assert main(list(map(str, words))) == 2
        assert capsys.readouterr().err == f"error: {digits_toml}: {told}\n"
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="not installed"):
        list(
            check_plan(
                resolve_plan(Scenario.model_validate(digits_scenario | {"tracking": {"tensorboard": {}}}))
            )
        )


def test_loggers_are_listed_with_their_extra(absent):
    text = "\n".join(loggers())
    assert "not installed; in a clone of fedkd: pip install '.[tensorboard]'" in text
    assert all(name in text for name in LOGGERS)
    assert 'mode = "offline"' in text and "pictures_every = 10" in text


def test_logging_changes_nothing_of_a_run(digits_scenario, tmp_path):
    pytest.importorskip("tensorboard")
    tables = digits_scenario | {"fusion": {"strategy": "fedmd"}}
    plain = fedkd.run(tables, out=tmp_path / "plain", progress=False)
    logged = fedkd.run(tables | {"tracking": {"tensorboard": {}}}, out=tmp_path / "logged", progress=False)
    assert (plain.folder / METRICS_FILE).read_bytes() == (logged.folder / METRICS_FILE).read_bytes()
