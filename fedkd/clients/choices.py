"""What a step of a model was measured to take in the loop and together with others, kept for the next run.

CACHE/fedkd/executors.json    {"version": 2, "measured": [{"what": {...}, "loop": s, "vectorised": s}]}

It is a cache: what cannot be read, or is not what was written, counts as never measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from fedkd.data.request import user_cache
from fedkd.json_text import NotJson, parse_json
from fedkd.tracking.atomic import write_json_atomically

VERSION = 2
MOST = 200
"""Measurements that are kept, the newest."""

Measured = tuple[float, float]
"""Seconds of a client's step: in the loop, and together."""


def cache_file() -> Path:
    """Return where measurements are kept."""
    return user_cache() / "executors.json"


def measured_steps() -> list[tuple[dict[str, Any], Measured]]:
    """Return what was measured, by what and with which result, the oldest first."""
    try:
        stored = parse_json(cache_file().read_bytes())
    except (OSError, NotJson, RuntimeError):  # the last: a home folder of nobody
        return []
    if not isinstance(stored, Mapping) or stored.get("version") != VERSION:
        return []
    rows = stored.get("measured")
    found = [_row(row) for row in rows] if isinstance(rows, list) else []
    return [row for row in found if row is not None]


def _row(row: Any) -> tuple[dict[str, Any], Measured] | None:
    if not isinstance(row, Mapping) or not isinstance(row.get("what"), dict):
        return None
    loop, vectorised = row.get("loop"), row.get("vectorised")
    for seconds in (loop, vectorised):
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            return None
        if not isfinite(seconds) or seconds <= 0:
            return None
    assert isinstance(loop, int | float) and isinstance(vectorised, int | float)
    return row["what"], (float(loop), float(vectorised))


def cached_step(what: Mapping[str, Any]) -> Measured | None:
    """Return what was measured of something; None: nothing yet."""
    return next((measured for known, measured in reversed(measured_steps()) if known == what), None)


def cache_step(what: Mapping[str, Any], measured: Measured) -> None:
    """Keep a measurement in place of an earlier one; where nobody may write, it is not kept."""
    rows = [(known, seconds) for known, seconds in measured_steps() if known != what]
    rows.append((dict(what), measured))
    table = [
        {"what": known, "loop": loop, "vectorised": vectorised} for known, (loop, vectorised) in rows[-MOST:]
    ]
    with suppress(OSError, RuntimeError, ValueError):
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(cache_file(), {"version": VERSION, "measured": table})
