"""What can be wrong with cells before the first is run: their data, their models, their loggers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedkd.benchmark.cells import Cell, in_cell, what_decides_data
from fedkd.errors import UserError


class CellCheck:
    """Loads every data set and builds every model of the cells that it is shown, for one seed and once.

    Args:
        file: Name for error messages.
        tell: Told what takes long, such as a download.
    """

    def __init__(self, file: str, tell: Callable[[str], None] | None = None) -> None:
        self._file = file
        self._tell = tell
        self._checked: set[str] = set()

    def check(self, cells: Sequence[Cell]) -> None:
        """Check cells.

        Raises:
            UserError: The first cell that cannot run, with its name.
        """
        from fedkd.check import check_with
        from fedkd.data.load import load_data
        from fedkd.plan.plan import resolve
        from fedkd.tracking.loggers.registry import check_loggers

        loaded, data = "", None
        for cell in cells:
            scenario = cell.scenario
            dealt = what_decides_data(scenario)
            learner = scenario.continual.model_dump_json() if scenario.continual else ""
            tracking = scenario.tracking.model_dump_json()
            models = [group.model_dump_json() for group in scenario.clients]
            kind = "".join([dealt, *models, learner, tracking])
            if kind in self._checked:
                continue
            self._checked.add(kind)
            try:
                check_loggers(scenario)
                if data is None or dealt != loaded:
                    loaded, data = dealt, load_data(scenario, self._tell)
                for _ in check_with(resolve(scenario, written=False), data):
                    continue
            except UserError as error:
                raise in_cell(error, cell.label, self._file) from error
