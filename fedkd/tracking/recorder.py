"""The run folder's `metrics.jsonl`, `timings.jsonl`, `epochs.jsonl`, `warnings.jsonl` and `summary.json`.

`metrics.jsonl` is tidy, one value a line, and identical in all runs of a scenario:

    {"round": 3, "client": 4, "task": null, "split": "local", "metric": "accuracy", "value": 0.871}

Floats have Python's shortest exact form: equal values give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import IO, Any, Literal, Self, SupportsFloat, TypedDict, cast

from fedkd.errors import UserError
from fedkd.storage import InvalidJson, break_hard_link, parse_json, sync_folder

METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "timings.jsonl"
EPOCHS = "epochs.jsonl"
WARNINGS = "warnings.jsonl"
"""Warnings of a run, as deterministic as its metrics; created with the first warning."""
SUMMARY_FILE = "summary.json"
BLOCK_BYTES = 1 << 20

Split = Literal["local", "global", "train"]


class MetricRow(TypedDict):
    """One line of `metrics.jsonl`."""

    round: int
    client: int | None  # None for the federation's mean
    task: int | None  # None without a stream
    split: Split
    metric: str
    value: float | None  # None if not finite


class Recorder:
    """Appends to the tidy files of a run folder, which is created if missing.

    Lines stay in memory until `flush` makes them durable. A checkpoint stores `offsets` and `digests` after a
    flush. A resumed run truncates the files there. A new run (None) starts with empty files.

    Raises:
        UserError: The kept bytes have changed.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        offsets: Mapping[str, int] | None = None,
        digests: Mapping[str, str] | None = None,
        epochs: bool = False,
    ) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = (METRICS_FILE, TIMINGS_FILE, *([EPOCHS] if epochs else []), WARNINGS)
        keep = {name: (offsets or {}).get(name, 0) for name in names}
        digests = digests or {}
        # Check all files before truncating any: a refused resume leaves the folder unchanged.
        self._hashes = {name: _checked_hash(folder / name, keep[name], digests.get(name)) for name in names}
        if keep[WARNINGS] == 0:
            (folder / WARNINGS).unlink(missing_ok=True)
        self._folder, self._offsets = folder, keep
        self._files = {name: _open_at(folder / name, offset) for name, offset in self.offsets().items()}
        self._waiting: dict[str, list[str]] = {name: [] for name in names}
        sync_folder(folder)

    def metric(
        self,
        metric: str,
        value: SupportsFloat | None,
        *,
        round: int,
        client: int | None = None,
        split: Split,
        task: int | None = None,
    ) -> None:
        """Append one value to `metrics.jsonl`; None, NaN and infinities are written as null."""
        row: MetricRow = {
            "round": int(round),
            "client": None if client is None else int(client),
            "task": None if task is None else int(task),
            "split": split,
            "metric": metric,
            "value": _json_number(value),
        }
        self._waiting[METRICS_FILE].append(json.dumps(row))

    def epoch(
        self, value: float, *, round: int, client: int, task: int | None, epoch: int, split: Split
    ) -> None:
        """Append a client's accuracy after a local epoch (from 1) to `epochs.jsonl`."""
        row = {"round": round, "client": client, "task": task, "epoch": epoch, "split": split}
        self._waiting[EPOCHS].append(json.dumps({**row, "metric": "accuracy", "value": _json_number(value)}))

    def warning(self, warning: str, *, round: int, client: int, task: int | None, **figures: float) -> None:
        """Append a warning, such as `"at_chance"`, with its figures by name to `warnings.jsonl`."""
        row = {"round": round, "client": client, "task": task, "warning": warning}
        told = {name: _json_number(value) for name, value in figures.items()}
        self._waiting[WARNINGS].append(json.dumps(row | told))

    def timing(self, **fields: Any) -> None:
        """Append one line to `timings.jsonl`; numbers are written as in `metric`."""
        row = {name: _json_number(value) if _is_number(value) else value for name, value in fields.items()}
        self._waiting[TIMINGS_FILE].append(json.dumps(row))

    def flush(self) -> None:
        """Write all pending lines, metrics before timings, and wait until they are on disk."""
        for name, lines in self._waiting.items():
            if lines:
                data = "".join(f"{line}\n" for line in lines).encode()
                lines.clear()
                if name not in self._files:
                    self._files[name] = _open_at(self._folder / name, 0)
                    sync_folder(self._folder)
                file = self._files[name]
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                self._offsets[name] += len(data)
                self._hashes[name].update(data)

    def offsets(self) -> dict[str, int]:
        """Return the length of each file in bytes after the last `flush`."""
        return {name: offset for name, offset in self._offsets.items() if name != WARNINGS or offset}

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file after the last `flush`."""
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}

    def close(self) -> None:
        """Flush and close all files. May be called twice."""
        if not all(file.closed for file in self._files.values()):
            try:
                self.flush()
            finally:
                for file in self._files.values():
                    file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(folder: Path | str) -> list[MetricRow]:
    """Return the rows of a run folder's `metrics.jsonl`; a half-written last line is skipped.

    Raises:
        UserError: The file is missing, or a line is not a row of metrics.
    """
    path = Path(folder) / METRICS_FILE
    rows = _read_rows(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not row.keys() >= MetricRow.__required_keys__:
            lacks = sorted(MetricRow.__required_keys__ - row.keys()) if isinstance(row, dict) else []
            told = f"it lacks '{lacks[0]}'" if lacks else f"it is a {type(row).__name__}"
            raise UserError(f"line {number} is not a row of metrics: {told}", file=str(path))
    return cast("list[MetricRow]", rows)


def read_epochs(folder: Path | str) -> list[dict[str, Any]]:
    """Return the rows of a run folder's `epochs.jsonl` (see `read_metrics`)."""
    return _read_rows(Path(folder) / EPOCHS)


def read_warnings(folder: Path | str) -> list[dict[str, Any]]:
    """Return the rows of a run folder's `warnings.jsonl` (see `read_metrics`), if it exists."""
    path = Path(folder) / WARNINGS
    return _read_rows(path) if path.exists() else []


def read_timings(folder: Path | str) -> list[dict[str, Any]]:
    """Return the rows of a run folder's `timings.jsonl` (see `read_metrics`)."""
    return _read_rows(Path(folder) / TIMINGS_FILE)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError("not found; is this a run folder?", file=str(path)) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=str(path)) from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(parse_json(line))
        except InvalidJson:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise UserError(f"line {number} is not valid JSON", file=str(path)) from None
    return rows


def _checked_hash(path: Path, offset: int, digest: str | None) -> hashlib._Hash:
    """Return the hash of a file's kept bytes; raise a `UserError` if they have changed."""
    found, left, why = hashlib.sha256(), offset, ""
    length = path.stat().st_size if path.exists() else 0
    if offset and length >= offset:
        with path.open("rb") as file:
            while left and (block := file.read(min(left, BLOCK_BYTES))):
                found.update(block)
                left -= len(block)
    if length < offset:
        why = f"has {length} bytes, but the checkpoint needs {offset}"
    elif digest not in (None, found.hexdigest()):
        why = f"its first {offset} bytes differ from those at the checkpoint"
    if why:
        raise UserError(f"{why}: the file was changed", file=str(path))
    return found


def _open_at(path: Path, offset: int) -> IO[bytes]:
    break_hard_link(path)
    file = path.open("ab")
    file.truncate(offset)
    return file


def _is_number(value: object) -> bool:
    return isinstance(value, SupportsFloat) and not isinstance(value, bool)


def _json_number(value: SupportsFloat | None) -> int | float | None:
    if value is None:
        return None
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(float(value)) else None
