"""The request for a data set, and the folders to search."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.errors import UserError, did_you_mean
from fedkd.storage import expand_path

ProgressCallback = Callable[[str], None]


def silent(line: str) -> None:
    """Ignore progress."""


def user_cache_folder() -> Path:
    """Return the folder of downloads and decoded images: `$XDG_CACHE_HOME/fedkd` or `~/.cache/fedkd`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fedkd"


def data_root_folder(root: str | None) -> Path:
    """Return the data root: `root` as the scenario gives it, else `$FEDKD_DATA`, else the user cache."""
    chosen = root or os.environ.get("FEDKD_DATA")
    return expand_path(chosen, key="data.root") if chosen else user_cache_folder()


def writable(folder: Path) -> bool:
    """Return whether `folder` exists, or can be created, and is writable."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


@dataclass(frozen=True)
class SourceRequest:
    """One data set to load."""

    name: str
    root: Path
    args: Mapping[str, Any] = field(default_factory=dict)  # the scenario's `data.args`
    search: tuple[Path, ...] = ()  # the scenario's folders (`plugin_path`), for relative paths and plug-ins
    progress: ProgressCallback = silent  # called with one line at a time during downloads and decoding
    integers: bool = False  # True if integer samples, such as token ids, stay integers (int64)
    clients: int = 10  # number of clients N, for sources with samples for each
    regression: bool = False  # True if labels are numeric targets
    held_out: Callable[[np.ndarray, np.ndarray | None], np.ndarray] | None = None
    """Returns the indices of the transfer set for labels and owners of a train split; None: it has another
    source."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders to search: the data root, then the user cache."""
        return tuple(dict.fromkeys((self.root, user_cache_folder())))

    @property
    def download_folder(self) -> Path:
        """Folder of downloads: the data root if it is writable, else the user cache."""
        return self.root if writable(self.root) else user_cache_folder()

    def arguments(self, **defaults: Any) -> dict[str, Any]:
        """Return `args` with checked types and `defaults`; a type stands for None."""
        for key, value in self.args.items():
            if key not in defaults:
                told = f"unknown argument of '{self.name}'; {did_you_mean(key, defaults)}"
                raise UserError(told, key=f"data.args.{key}")
            default = defaults[key]
            kind: type = default if isinstance(default, type) else type(default)
            number = kind is float and type(value) is int
            if type(value) is not kind and not number:
                raise UserError(f"must be of type {kind.__name__}, got {value!r}", key=f"data.args.{key}")
        absent = {key: None if isinstance(value, type) else value for key, value in defaults.items()}
        return {**absent, **self.args}

    def path(self, value: str | None) -> Path:
        """Return the file or folder of `args.path`, in the data root, the scenario's or this folder."""
        if not value:
            raise UserError(f"'{self.name}' needs the path of its file or folder", key="data.args.path")
        given = expand_path(value, key="data.args.path")
        tried = [given] if given.is_absolute() else [b / given for b in (self.root, *self.search, Path())]
        for candidate in tried:
            if candidate.exists():
                return candidate
        places = ", ".join(dict.fromkeys(str(candidate.absolute()) for candidate in tried))
        raise UserError(f"no file or folder '{value}'; looked for {places}", key="data.args.path")
