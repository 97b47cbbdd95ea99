"""The result of a run, for scripts and notebooks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedkd.errors import UserError
from fedkd.tracking import (
    MetricRow,
    RunReport,
    closing_lines,
    format_mean,
    format_percent,
    html_preformatted,
    html_table,
    read_metrics,
)

COLUMNS = ("round", "client", "task", "split", "metric", "value")
FRAMES = ("pandas", "polars")
SHOWN = (
    ("local test accuracy", "accuracy_before_fusion_local", "accuracy_local"),
    ("global test accuracy", "accuracy_before_fusion_global", "accuracy_global"),
)


@dataclass(frozen=True, repr=False)
class RunResult:
    """A finished run: its folder, and the content of its `summary.json`."""

    folder: Path
    summary: dict[str, Any]

    def metrics(self) -> list[MetricRow]:
        return read_metrics(self.folder)

    def frame(self, library: str | None = None) -> Any:
        """Return `metrics.jsonl` as a data frame of `"pandas"` or `"polars"` (default: the installed one)."""
        rows: Sequence[Mapping[str, Any]] = self.metrics()
        return frame_of({name: [row[name] for row in rows] for name in COLUMNS}, library)

    def __repr__(self) -> str:
        final = self.summary.get("final") or {}
        metric = self.summary.get("metric")
        found = {key: final.get(key) for key in (f"{metric or 'accuracy'}_{s}" for s in ("local", "global"))}
        told = [f"{key}={format_mean(value, metric)}" for key, value in found.items() if value is not None]
        return f"<RunResult {self.summary.get('name')}: {', '.join([*told, str(self.folder)])}>"

    def _repr_html_(self) -> str:
        def mean(over_clients: Mapping[str, Any] | None) -> str:
            if over_clients is None:
                return format_percent(None)
            if metric is not None:
                return f"{format_mean(over_clients, metric)} ± {over_clients['std']:.3g}"
            return f"{format_percent(over_clients['mean'])} ± {100 * over_clients['std']:.1f}"

        final, metric = self.summary.get("final") or {}, self.summary.get("metric")
        parts = {"all clients": final} | dict(final.get("by_architecture") or {})
        if len(parts) == 2:  # a single architecture equals all clients
            parts = {"all clients": final}
        moments = [
            f"{data.replace('accuracy', metric or 'accuracy')}, {moment}"
            for data, _, _ in SHOWN
            for moment in ("before fusion", "after fusion")
        ]
        keys = [key.replace("accuracy", metric or "accuracy") for _, *both in SHOWN for key in both]
        rows = [[name, *(mean(found.get(key)) for key in keys)] for name, found in parts.items()]
        name, seed = self.summary.get("name"), self.summary.get("seed")
        title = f"<b>{escape(str(name))}</b>, seed {seed}, {self.summary.get('rounds')} rounds"
        without = ("local accuracy", "global accuracy", "before fusion", "architectures", " ")
        lines = closing_lines(RunReport(self.folder, {**self.summary}))
        besides = [line for line in lines if not line.startswith(without)]
        return title + html_table(["clients", *moments], rows) + html_preformatted(besides)


def frame_of(columns: Mapping[str, list[Any]], library: str | None = None) -> Any:
    """Return columns of equal length as a data frame (see `RunResult.frame`); integers may be missing."""
    if library is not None and library not in FRAMES:
        raise UserError(f"must be {' or '.join(map(repr, FRAMES))}, got {library!r}", key="library")
    wanted = FRAMES if library is None else (library,)
    found = next((name for name in wanted if find_spec(name) is not None), None)
    if found is None:
        told = "neither pandas nor polars is" if library is None else f"{library} is not"
        raise UserError(f"{told} installed; pip install {wanted[0]}, or use metrics(), a list of dicts")
    if found == "polars":
        import polars

        return polars.DataFrame(dict(columns), strict=False)
    import pandas

    arrays: dict[str, Any] = dict(columns)
    for name, values in columns.items():
        if all(value is None or isinstance(value, int) for value in values):
            arrays[name] = pandas.array(values, dtype="Int64")
    return pandas.DataFrame(arrays)
