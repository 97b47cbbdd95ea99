"""``fedkd runs``: the runs below a folder and their progress."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fedkd.errors import UserError
from fedkd.scenario import read_toml
from fedkd.storage import InvalidJson, expand_path, parse_json
from fedkd.tracking import (
    METRICS_FILE,
    MISSING_VALUE,
    SCENARIO_FILE,
    SUMMARY_FILE,
    format_duration,
    format_mean,
    format_percent,
    html_table,
    is_locked,
    read_progress,
)

CELLS = "runs"  # folder of the run folders in a bench folder
SIGNS_OF_A_BENCH = ("cells.csv", "bench.toml")
DEEPEST = 4  # searched levels of folders
TITLES = ("run", "name", "strategy", "status", "rounds", "local", "global", "time", "when")
NAMES = 4  # columns of text, from the left


@dataclass(frozen=True)
class RunEntry:
    """A run, or all runs of a bench."""

    folder: Path
    name: str
    strategy: str
    status: str
    """`done`, `running`, `interrupted`, `failed`, `unreadable`, or `stopped` (killed; it can be resumed).
    For a bench, the number of finished runs."""
    finished: int | None = None
    rounds: int | None = None
    accuracy_local: float | None = None  # mean over clients at the end, in [0, 1]; None before the end
    accuracy_global: float | None = None
    others: tuple[str, str] | None = None  # in regression, another metric's means, as text
    seconds: float | None = None
    when: datetime | None = None  # time of the last write


@dataclass(frozen=True)
class RunList:
    """Runs below a folder, by their paths."""

    folder: Path
    entries: tuple[RunEntry, ...]

    def __iter__(self) -> Iterator[RunEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def lines(self) -> Iterator[str]:
        if self.entries:
            yield from aligned([TITLES, *self._rows()], NAMES)
        else:
            yield f"no runs in {self.folder}"

    def _repr_html_(self) -> str:
        return html_table(TITLES, self._rows(), names=NAMES)

    def _rows(self) -> list[tuple[str, ...]]:
        return [_cells(entry, self.folder) for entry in self.entries]


def aligned(rows: Sequence[Sequence[str]], names: int = 1) -> Iterator[str]:
    """Yield rows with aligned columns, the first `names` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip("<" * names + ">" * (len(row) - names), row, widths, strict=True)
        yield "  ".join(f"{cell:{side}{width}}" for side, cell, width in cells).rstrip()


def runs(folder: str | Path = "runs") -> RunList:
    """Return the runs at or below a folder, or the cells of a bench folder.

    A bench below the folder is one entry.
    """
    if not isinstance(folder, str | os.PathLike):
        raise UserError(f"the folder must be a path, got {folder!r}")
    root = expand_path(folder)
    try:
        if not root.is_dir():
            raise UserError("no such folder", file=str(folder))
    except (OSError, ValueError) as error:  # an invalid folder name
        raise UserError(
            f"must be the path of a folder, got an invalid one: {error}", file=str(folder)
        ) from None
    if _is_run(root):
        return RunList(root.parent, (_entry(root),))
    inner = root / CELLS if _is_bench(root) else root
    return RunList(inner, tuple(_below(inner, DEEPEST)))


def _below(folder: Path, depth: int) -> Iterator[RunEntry]:
    try:
        inner = sorted(
            child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
        )
    except OSError:  # an unreadable folder shows no runs
        return
    for child in inner:
        if _is_run(child):
            yield _entry(child)
        elif _is_bench(child):
            yield _bench_entry(child)
        elif depth > 1:
            yield from _below(child, depth - 1)


def _is_run(folder: Path) -> bool:
    return (folder / SCENARIO_FILE).is_file()


def _is_bench(folder: Path) -> bool:
    signed = folder.name.startswith("bench-") or any((folder / name).is_file() for name in SIGNS_OF_A_BENCH)
    return signed and (folder / CELLS).is_dir()


def _entry(folder: Path) -> RunEntry:
    try:
        tables = read_toml(folder / SCENARIO_FILE)
        name, rounds = str(tables.get("name", folder.name)), int(tables["rounds"])
        strategy = str(tables.get("fusion", {}).get("strategy", MISSING_VALUE))
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return RunEntry(folder, folder.name, MISSING_VALUE, "unreadable")
    summary, present = read_run_summary(folder), read_progress(folder)
    said = "done" if present is None else present.status
    done = summary.get("rounds") == rounds and said == "done"
    status = "done" if done else said if said in ("failed", "interrupted") else "stopped"
    if not done and is_locked(folder):
        status = "running"
    final: Mapping[str, Any] = summary.get("final") or {} if done else {}
    return RunEntry(
        folder,
        name,
        strategy,
        status,
        finished=rounds if done else present.finished if present is not None else None,
        rounds=rounds,
        accuracy_local=(final.get("accuracy_local") or {}).get("mean"),
        accuracy_global=(final.get("accuracy_global") or {}).get("mean"),
        others=_others(final, summary.get("metric")),
        seconds=summary.get("seconds") if done else None,
        when=_when(folder / SUMMARY_FILE if done else folder / METRICS_FILE),
    )


def _others(final: Mapping[str, Any], metric: str | None) -> tuple[str, str] | None:
    if metric is None or not final:
        return None
    means = [format_mean(final.get(f"{metric}_{split}"), metric) for split in ("local", "global")]
    return f"{metric} {means[0]}", f"{metric} {means[1]}"


def _bench_entry(folder: Path) -> RunEntry:
    cells = [_entry(cell) for cell in sorted((folder / CELLS).iterdir()) if _is_run(cell)]
    done = sum(cell.status == "done" for cell in cells)
    seconds = [cell.seconds for cell in cells if cell.seconds is not None]
    name = f"bench of {len(cells)} run{'s' * (len(cells) != 1)}"
    when = max((cell.when for cell in cells if cell.when is not None), default=None)
    spent = sum(seconds) if seconds else None
    return RunEntry(folder, name, MISSING_VALUE, f"{done} done", seconds=spent, when=when)


def read_run_summary(folder: Path) -> Mapping[str, Any]:
    """Return the summary of a run; empty if it is missing or unreadable."""
    with suppress(OSError, InvalidJson):
        found = parse_json((folder / SUMMARY_FILE).read_bytes())
        if isinstance(found, dict):
            return found
    return {}


def _when(path: Path) -> datetime | None:
    with suppress(OSError):
        return datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    return None


def _cells(entry: RunEntry, root: Path) -> tuple[str, ...]:
    shown = entry.folder.relative_to(root) if entry.folder.is_relative_to(root) else entry.folder
    finished = MISSING_VALUE if entry.finished is None else entry.finished
    return (
        str(shown),
        entry.name,
        entry.strategy,
        entry.status,
        MISSING_VALUE if entry.rounds is None else f"{finished}/{entry.rounds}",
        *(entry.others or map(format_percent, (entry.accuracy_local, entry.accuracy_global))),
        MISSING_VALUE if entry.seconds is None else format_duration(entry.seconds),
        MISSING_VALUE if entry.when is None else f"{entry.when:%Y-%m-%d %H:%M}",
    )
