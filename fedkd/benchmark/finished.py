"""Run folders of cells that are done, and damage to their files.

``runs/CELL/digests.json`` has the SHA-256 of every file there that tables and figures are made of.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedkd.errors import UserError
from fedkd.storage import NotJson, file_digest, parse_json, write_json_atomically
from fedkd.tracking import METRICS, SUMMARY, TIMINGS, read_metrics, read_timings

DIGESTS = "digests.json"
READ = (SUMMARY, METRICS, TIMINGS)  # files of a run that a bench reads


class Damaged(Exception):
    """A file of a run that was done cannot be read, or is not what was written."""


def seal(folder: Path) -> None:
    """Write the digests of a run that is done."""
    write_json_atomically(folder / DIGESTS, {name: file_digest(folder / name) for name in READ})


def unseal(folder: Path) -> None:
    """Remove the digests of a run that goes on."""
    (folder / DIGESTS).unlink(missing_ok=True)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a cell that is done and whole, else None."""
    with suppress(Damaged):
        return whole_summary(folder)
    return None


def damage(folder: Path) -> str | None:
    """Return what is damaged of a cell that was done; None: nothing, or it never was."""
    try:
        whole_summary(folder)
    except Damaged as damaged:
        return str(damaged)
    return None


def whole_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a finished cell; None: it is not finished. Raise `Damaged` for a changed file."""
    try:
        summary = parse_json((folder / SUMMARY).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, NotJson):
        raise Damaged(f"{SUMMARY} cannot be read") from None
    found = summary if isinstance(summary, dict) else {}
    tables = (found.get("final"), found.get("continual") or {})
    whole = found.get("status") == "done" and isinstance(found.get("seconds"), int | float)
    if not whole or not all(isinstance(table, Mapping) for table in tables):
        raise Damaged(f"{SUMMARY} is not that of a run that is done")
    try:
        digests = parse_json((folder / DIGESTS).read_bytes())
    except FileNotFoundError:  # no bench finished it
        _check_rows(folder)
        return summary
    except (OSError, NotJson):
        digests = None
    if not isinstance(digests, dict):
        raise Damaged(f"{DIGESTS} cannot be read")
    for name in READ:
        try:
            if file_digest(folder / name) != digests.get(name):
                raise Damaged(f"{name} is not what was written")
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        except OSError:
            raise Damaged(f"{name} cannot be read") from None
    return summary


def _check_rows(folder: Path) -> None:
    """Check that the tidy files of a run are rows, the last one whole."""
    for name, read in ((METRICS, read_metrics), (TIMINGS, read_timings)):
        try:
            whole = all(isinstance(row, dict) for row in read(folder))
            whole = whole and (folder / name).read_bytes().endswith(b"\n")
        except (UserError, OSError, RecursionError):
            whole = False
        if not whole:
            raise Damaged(f"{name} is missing or cannot be read")
