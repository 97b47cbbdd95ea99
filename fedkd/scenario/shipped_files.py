"""Scenarios and benches that come with fedkd, by name.

They are in ``scenarios/`` of the repository, or in ``fedkd/shipped/`` of an installed package. A name is the
path there without ``.toml``, such as ``continual/quickstart``, or its last part if that is unique.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from fedkd.errors import UserError

ShippedKind = Literal["scenario", "bench"]
KIND_PLURALS: Mapping[ShippedKind, str] = {"scenario": "scenarios", "bench": "benches"}
"""Kinds of files, and their lists in ``fedkd list``."""
BENCH_FOLDER = "bench"
APP_FOLDER = "flower-app"
TOML_SUFFIX = ".toml"


@dataclass(frozen=True)
class ShippedFile:
    """A shipped file with its name."""

    name: str
    path: Path

    def about(self) -> tuple[str, str]:
        """Return the first sentence and the duration of the file's comment."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        end = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
        comment = " ".join(line.lstrip("# ") for line in lines[:end])
        first = re.split(r"(?<=[.?!]) (?=[A-Z0-9`])", comment, maxsplit=1)[0]
        takes = re.search(r"(?:^|[.;?!,…] )([^.;?!,…]+ on 2 cores)", comment)
        return first, takes[1] if takes else ""


def shipped_folder() -> Path | None:
    """Return the folder of shipped files, in the package or its repository."""
    package = Path(__file__).resolve().parent.parent
    return next((f for f in (package / "shipped", package.parent / "scenarios") if f.is_dir()), None)


def list_shipped(kind: ShippedKind) -> list[ShippedFile]:
    """Return all shipped scenarios or benches, those without a folder first."""
    folder = shipped_folder()
    if folder is None:
        return []
    found = []
    for path in folder.rglob(f"*{TOML_SUFFIX}"):
        parts = path.relative_to(folder).parts
        if parts[0] != APP_FOLDER and (parts[0] == BENCH_FOLDER) == (kind == "bench"):
            found.append(ShippedFile("/".join(parts).removesuffix(TOML_SUFFIX), path))
    return sorted(found, key=lambda entry: (entry.name.count("/"), entry.name))


def shipped_names(kind: ShippedKind) -> dict[str, Path]:
    """Return shipped files of a kind by name, and by unique last part."""
    entries = list_shipped(kind)
    lasts = [entry.name.rpartition("/")[2] for entry in entries]
    short = {last: entry.path for last, entry in zip(lasts, entries, strict=True) if lasts.count(last) == 1}
    return short | {entry.name: entry.path for entry in entries}


def find_shipped(given: str | Path, kind: ShippedKind) -> Path:
    """Return the file of a path or a shipped name.

    A missing path ending in ``.toml`` is returned as it is. An unknown name is a `UserError`.
    """
    path, name = Path(given), str(given)
    try:
        there = path.is_file() or (path.is_dir() and name not in shipped_names(kind))
    except (OSError, ValueError):  # an invalid file name: opening it raises the error
        return path
    if there:
        return path
    other: ShippedKind = "scenario" if kind == "bench" else "bench"
    known = {entry.name: entry.path for entry in list_shipped(other)} | shipped_names(kind)
    if name in known:
        return known[name]
    near = known.get(path.stem) if path.suffix == TOML_SUFFIX else None
    if near is not None:
        verb = "bench" if kind == "bench" else "run"
        told = f"no such file; the shipped {kind} runs by its name: fedkd {verb} {path.stem}"
        raise UserError(told, file=name)
    if path.suffix == TOML_SUFFIX:
        return path
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    told = f"no such file, and no shipped {kind} of this name{hint} (see: fedkd list {KIND_PLURALS[kind]})"
    raise UserError(told, file=name)
