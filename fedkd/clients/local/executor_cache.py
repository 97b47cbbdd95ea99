"""Cached times of a model's step in the loop and in joint training.

CACHE/fedkd/executors.json    {"version": 2, "measured": [{"what": {...}, "loop": s, "vectorised": s}]}

Unreadable entries are ignored.
"""

from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from fedkd.data import user_cache_folder
from fedkd.storage import InvalidJson, parse_json, write_json_atomically

VERSION = 2
MOST = 200
"""Number of measurements to keep, the newest."""

Measured = tuple[float, float]
"""Seconds of a client's step: in the loop, and together."""


def executor_cache_path() -> Path:
    return user_cache_folder() / "executors.json"


def read_step_measurements() -> list[tuple[dict[str, Any], Measured]]:
    """Return all measurements: the measured setting and its times, oldest first."""
    try:
        stored = parse_json(executor_cache_path().read_bytes())
    except (OSError, InvalidJson, RuntimeError):  # RuntimeError: there is no home folder
        return []
    if not isinstance(stored, Mapping) or stored.get("version") != VERSION:
        return []
    rows = stored.get("measured")
    found = [_row(row) for row in rows] if isinstance(rows, list) else []
    return [row for row in found if row is not None]


def _row(row: Any) -> tuple[dict[str, Any], Measured] | None:
    if not isinstance(row, Mapping) or not isinstance(row.get("what"), dict):
        return None
    seconds: list[Any] = [row.get("loop"), row.get("vectorised")]
    if not all(type(value) in (int, float) and isfinite(value) and value > 0 for value in seconds):
        return None
    return row["what"], (float(seconds[0]), float(seconds[1]))


def cached_step(what: Mapping[str, Any]) -> Measured | None:
    """Return the times of a setting; None: not measured yet."""
    return next((measured for known, measured in reversed(read_step_measurements()) if known == what), None)


def cache_step(what: Mapping[str, Any], measured: Measured) -> None:
    """Store a measurement over an earlier one, if the folder is writable."""
    rows = [(known, seconds) for known, seconds in read_step_measurements() if known != what]
    rows.append((dict(what), measured))
    table = [
        {"what": known, "loop": loop, "vectorised": vectorised} for known, (loop, vectorised) in rows[-MOST:]
    ]
    with suppress(OSError, RuntimeError, ValueError):
        executor_cache_path().parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(executor_cache_path(), {"version": VERSION, "measured": table})
