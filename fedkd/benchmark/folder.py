"""Refuses a bench folder that holds runs of another bench."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedkd.benchmark.cells import Cell
from fedkd.benchmark.merge import value_at
from fedkd.errors import UserError
from fedkd.plan import MAX_LISTED_CHANGES
from fedkd.scenario import changed_keys, read_scenario, read_toml, result_relevant_keys, with_choices_of
from fedkd.tracking import SCENARIO_FILE

SHOWN_VALUES = 4  # values of a key that a message names at most


def check_folder(cells: Sequence[Cell], folder: Path) -> None:
    """Refuse a folder with runs of another bench; new seeds, values and variants only add cells."""
    try:
        found = sorted((folder / "runs").iterdir())
    except OSError:  # missing yet, or unreadable: writing there reports it
        return
    names = {cell.folder_name for cell in cells}
    strangers = [path for path in found if path.name not in names and (path / SCENARIO_FILE).is_file()]
    if not strangers:
        return
    runs = f"{len(strangers)} run{'s' * (len(strangers) > 1)}"
    told = (
        f"{folder} holds {runs} of another bench: {_difference(strangers[0], cells)}; choose another folder"
    )
    told += f" with --out, or remove the runs that you do not need, such as {strangers[0]}"
    raise UserError(told, key="--out")


def _difference(run: Path, cells: Sequence[Cell]) -> str:
    """Word the difference of a run from the cell that is most like it."""
    try:
        began = read_scenario(read_toml(run / SCENARIO_FILE), folder=run)
    except UserError:
        return f"{run.name}, whose {SCENARIO_FILE} cannot be read"
    before = result_relevant_keys(began)
    keys = [with_choices_of(began, result_relevant_keys(cell.scenario)) for cell in cells]
    changes = [changed_keys(before, now, places=True) for now in keys]
    nearest = min(changes, key=len)
    if not nearest:
        twin = cells[changes.index(nearest)]
        return f"{run.name} is now called {twin.folder_name}"
    told = [f"{key} was {_word(old)} and is {_now(key, new, cells)}" for key, (old, new) in nearest.items()]
    more = [f"{len(told) - MAX_LISTED_CHANGES} more"] if len(told) > MAX_LISTED_CHANGES else []
    return ", ".join([*told[:MAX_LISTED_CHANGES], *more])


def _now(key: str, nearest: Any, cells: Sequence[Cell]) -> str:
    """Word the values of the cells at a dotted key, that of the nearest cell first."""
    others = (_word(value_at(result_relevant_keys(cell.scenario), key)) for cell in cells)
    *first, last = list(dict.fromkeys([_word(nearest), *others]))[: SHOWN_VALUES + 1]
    if len(first) == SHOWN_VALUES:
        last = "…"
    return f"{', '.join(first)} or {last}" if first else last


def _word(value: Any) -> str:
    return "absent" if value is None else repr(value)
