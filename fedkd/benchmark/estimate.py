"""Estimates how long a bench takes."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

from fedkd.benchmark.cells import Cell
from fedkd.benchmark.finished import read_summary
from fedkd.benchmark.worker import run_cell
from fedkd.errors import RunFailed
from fedkd.scenario import Scenario, Tracking
from fedkd.tracking import RoundReport, RunObserver


class CellPace:
    """Estimates a cell's time from finished cells, those with its levels on the `compared` axes first."""

    def __init__(self, seconds: Mapping[Cell, float] | None = None, compared: Sequence[str] = ()) -> None:
        self._compared = compared
        self._seconds: dict[tuple[str, ...], list[float]] = {}
        for cell, spent in (seconds or {}).items():
            self.add(cell, spent)

    def add(self, cell: Cell, seconds: float) -> None:
        self._seconds.setdefault(self._kind(cell), []).append(seconds)

    def of(self, cell: Cell) -> float | None:
        """Return the seconds that `cell` is likely to take; None: nothing is done yet."""
        if similar := self._seconds.get(self._kind(cell)):
            return median(similar)  # the first cells of a worker take longer: it imports torch
        everything = [seconds for some in self._seconds.values() for seconds in some]
        return fmean(everything) if everything else None

    def of_all(self, cells: Sequence[Cell]) -> float | None:
        """Return the seconds that all of `cells` take, one after the other."""
        guesses = [self.of(cell) for cell in cells]
        return sum(guess for guess in guesses if guess is not None) if None not in guesses else None

    def _kind(self, cell: Cell) -> tuple[str, ...]:
        return tuple(cell.levels[axis].label for axis in self._compared)


def estimate(cells: Sequence[Cell], folder: Path, compared: Sequence[str]) -> tuple[float, str]:
    """Return the total seconds of the cells to run, and the basis: finished cells, or one round."""
    summaries = {cell: read_summary(folder / cell.folder_name) for cell in cells}
    waiting = [cell for cell, summary in summaries.items() if summary is None]
    if not waiting:
        return 0.0, "every cell is done"
    spent = {cell: float(summary["seconds"]) for cell, summary in summaries.items() if summary is not None}
    if spent:
        seconds = CellPace(spent, compared).of_all(waiting)
        assert seconds is not None
        return seconds, f"measured on {len(spent)} finished cells, without loading and starting"
    tried = waiting[0]
    a_round = _time_one_round(tried)
    of_a_client = a_round / _clients_per_round(tried.scenario)
    seconds = sum(of_a_client * _clients_per_round(cell.scenario) * cell.scenario.rounds for cell in waiting)
    others = "other cells" if tried.scenario.continual is None else "other cells and later tasks"
    basis = f"one round of the cell '{tried.label}' took {a_round:.1f} s; {others} may take more or less,"
    basis += " and loading and starting are not counted"
    return seconds, basis


def _clients_per_round(scenario: Scenario) -> int:
    """Return how many clients train in a round; an asynchronous round ends after that many uploads."""
    if scenario.asynchronous is not None:
        return scenario.asynchronous.buffer
    return scenario.clients_per_round or scenario.data.clients


class _FirstRounds(RunObserver):
    """Stops a run after a number of rounds, and records the time of the last one."""

    def __init__(self, number: int) -> None:
        self.seconds: float | None = None
        self._number = number

    def round_finished(self, report: RoundReport) -> None:
        self.seconds = report.seconds
        if report.round >= self._number:
            raise KeyboardInterrupt  # after any other exception of an observer, the run goes on


def _time_one_round(cell: Cell) -> float:
    """Return the seconds of a cell's first round; if asynchronous, of its second: all train in the first."""
    with tempfile.TemporaryDirectory() as folder:
        tried = cell.scenario.model_copy(update={"evaluate_every": 1, "tracking": Tracking()})
        first = _FirstRounds(1 if tried.asynchronous is None else min(2, tried.rounds))
        outcome = run_cell(tried.model_dump_json(), folder, observers=[first])
    if first.seconds is not None:
        return first.seconds
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    raise RunFailed(f"cell '{cell.label}' failed in its first round: {outcome.error}")
