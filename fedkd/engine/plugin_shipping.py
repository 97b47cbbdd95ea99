"""Plug-ins on other machines: the Python files of a scenario's folders travel with its actors.

A plug-in may import lazily. So all Python files of a folder with an imported module travel, and whole
packages. Other files stay.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedkd.errors import UserError
from fedkd.plugins import module_file
from fedkd.scenario.schema import Scenario

MOST_BYTES = 64 * 2**20
"""Limit of all files together."""


@dataclass(frozen=True)
class ShippedFolder:
    """Python files of one folder of `Scenario.plugin_path`.

    Attributes:
        path: The folder on the machine that started fedkd.
        files: Contents by relative path, with ``/``.
    """

    path: str
    files: Mapping[str, bytes]


def files_to_ship(scenario: Scenario) -> tuple[ShippedFolder, ...]:
    """Return the files of folders with imported plug-ins; the scenario is resolved.

    Raises:
        UserError: They are too large, or one cannot be read.
    """
    folders, size = [], 0
    for index, name in enumerate(scenario.plugin_path):
        folder, files = Path(name).resolve(), {}
        for path in sorted(_files(folder, sorted(_imported_from(folder)))):
            try:
                data = files[path.relative_to(folder).as_posix()] = path.read_bytes()
            except OSError as error:
                raise UserError(
                    f"{path} cannot be sent to the nodes: {error.strerror}", key=f"plugin_path.{index}"
                ) from error
            size += len(data)
            if size > MOST_BYTES:
                raise UserError(
                    f"the Python files of {folder} are more than {MOST_BYTES >> 20} MiB, too much to send to"
                    " every node; give the plug-ins a folder of their own",
                    key=f"plugin_path.{index}",
                )
        if files:
            folders.append(ShippedFolder(name, files))
    return tuple(folders)


def with_shipped_files(scenario: Scenario, folders: Sequence[ShippedFolder]) -> Scenario:
    """Return a scenario that imports plug-ins from files equal to those sent.

    Equal files at the same place on this machine are used there. Others are written into a temporary folder
    of this user's.
    """
    here = {folder.path: folder.path if _is_here(folder) else str(_written(folder)) for folder in folders}
    search = [here.get(path, path) for path in scenario.plugin_path]
    return scenario.model_copy(update={"plugin_path": search})


def _imported_from(folder: Path) -> Iterator[Path]:
    """Yield, relative to a folder, the files that modules were imported from."""
    for name, module in list(sys.modules.items()):
        relative = module_file(name)
        for file in (relative, relative.with_suffix("") / "__init__.py"):
            if getattr(module, "__file__", None) == str(folder / file):
                yield file


def _files(folder: Path, imported: Sequence[Path]) -> set[Path]:
    found: set[Path] = set()
    for file in imported:
        found |= set((folder / file.parts[0]).rglob("*.py") if len(file.parts) > 1 else folder.glob("*.py"))
    return {path for path in found if path.is_file()}


def _is_here(folder: ShippedFolder, place: Path | None = None) -> bool:
    place = place or Path(folder.path)
    try:
        return all((place / file).read_bytes() == data for file, data in folder.files.items())
    except OSError:
        return False


def _written(folder: ShippedFolder) -> Path:
    """Return a folder of this user's with the files; processes of a machine share it."""
    new = Path(tempfile.mkdtemp(prefix="fedkd-plugins-"))
    for file, data in folder.files.items():
        path = new / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    shared = new.with_name(f"fedkd-plugins-{os.getuid()}-{_digest(folder)[:16]}")
    with suppress(OSError):  # another process was first
        new.rename(shared)
        return shared
    if not _is_ours(shared) or not _is_here(folder, shared):
        return new
    shutil.rmtree(new, ignore_errors=True)
    return shared


def _is_ours(folder: Path) -> bool:
    """Return whether only this user can have written a folder."""
    with suppress(OSError):
        status = folder.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return False


def _digest(folder: ShippedFolder) -> str:
    found = hashlib.sha256()
    for file, data in sorted(folder.files.items()):
        found.update(f"{file}\0".encode() + hashlib.sha256(data).digest())
    return found.hexdigest()
