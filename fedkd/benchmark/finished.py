"""Run folders of finished cells, and damage to their files.

``runs/CELL/digests.json`` has the SHA-256 of every file that tables and figures use.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedkd.errors import UserError
from fedkd.storage import InvalidJson, file_digest, parse_json, write_json_atomically
from fedkd.tracking import METRICS_FILE, SUMMARY_FILE, TIMINGS_FILE, read_metrics, read_timings

DIGESTS = "digests.json"
READ = (SUMMARY_FILE, METRICS_FILE, TIMINGS_FILE)  # files of a run that a bench reads


def seal(folder: Path) -> None:
    """Write the digests of a run that is done."""
    write_json_atomically(folder / DIGESTS, {name: file_digest(folder / name) for name in READ})


def unseal(folder: Path) -> None:
    """Remove the digests of a run that continues."""
    (folder / DIGESTS).unlink(missing_ok=True)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a cell that is done and whole, else None."""
    return _examined(folder)[0]


def find_damage(folder: Path) -> str | None:
    """Return the damage to a finished cell; None: no damage, or not finished."""
    return _examined(folder)[1]


def _examined(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Return the summary of a finished cell, or the damage of its files."""
    try:
        summary = parse_json((folder / SUMMARY_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except (OSError, InvalidJson):
        return None, f"{SUMMARY_FILE} cannot be read"
    found = summary if isinstance(summary, dict) else {}
    tables = (found.get("final"), found.get("continual") or {})
    whole = found.get("status") == "done" and isinstance(found.get("seconds"), int | float)
    if not whole or not all(isinstance(table, Mapping) for table in tables):
        return None, f"{SUMMARY_FILE} is not that of a finished run"
    changed = _changed(folder)
    return (None, changed) if changed else (found, None)


def _changed(folder: Path) -> str | None:
    """Return which file of a finished run has changed since it was written; None: no file."""
    try:
        digests = parse_json((folder / DIGESTS).read_bytes())
    except FileNotFoundError:  # no bench finished it
        return _broken_rows(folder)
    except (OSError, InvalidJson):
        digests = None
    if not isinstance(digests, dict):
        return f"{DIGESTS} cannot be read"
    for name in READ:
        try:
            if file_digest(folder / name) != digests.get(name):
                return f"{name} has changed since it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError:
            return f"{name} cannot be read"
    return None


def _broken_rows(folder: Path) -> str | None:
    """Return a tidy file of a run with broken rows, the last row included; None: all are whole."""
    for name, read in ((METRICS_FILE, read_metrics), (TIMINGS_FILE, read_timings)):
        try:
            whole = all(isinstance(row, dict) for row in read(folder))
            whole = whole and (folder / name).read_bytes().endswith(b"\n")
        except (UserError, OSError, RecursionError):
            whole = False
        if not whole:
            return f"{name} is missing or cannot be read"
    return None
