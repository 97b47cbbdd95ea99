"""Removal of half-written files and temporary folders of killed processes."""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

UNFINISHED = ("tmp", "partial")  # endings of unfinished files, whose names begin with a dot


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove unfinished files in a folder and in its direct subfolders.

    With a `name`, only its unfinished files in the folder itself are removed. Only the process that holds
    the folder's lock may call this.
    """
    for ending in UNFINISHED:
        patterns = [f".{name}.{ending}", f"*/.{name}.{ending}"] if name == "*" else [f".{name}.*.{ending}"]
        for pattern in patterns:
            for path in folder.glob(pattern):
                with suppress(OSError):  # e.g. a read-only file system
                    remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class TemporaryFolder:
    """A temporary folder, locked until it is closed.

    Folders of the same prefix that killed processes left are removed.
    """

    def __init__(self, prefix: str) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            _remove_if_dead(left)
        while True:
            self._folder = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
            self.path = Path(self._folder.name)
            with suppress(FileNotFoundError):  # another process removed it before the lock
                held = os.open(self.path, os.O_RDONLY)
                fcntl.flock(held, fcntl.LOCK_SH)
                if self.path.is_dir():
                    self._held: int | None = held
                    return
                os.close(held)

    def close(self) -> None:
        """Remove the folder; a second call does nothing."""
        self._folder.cleanup()
        held, self._held = self._held, None
        if held is not None:
            os.close(held)


def _remove_if_dead(folder: Path) -> None:
    """Remove a temporary folder of this user that no process has locked."""
    with suppress(OSError):  # another user's folder, or removed meanwhile
        descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        try:
            if os.fstat(descriptor).st_uid == os.getuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        finally:
            os.close(descriptor)
