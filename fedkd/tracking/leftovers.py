"""What killed processes leave behind: half-written files, and folders among the temporary ones."""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

UNFINISHED = ("tmp", "partial")  # endings of what is being written, under a name that begins with a dot


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove unfinished files in a folder and in those directly below it; of one `name`, in the folder alone.

    It is for the process that holds the folder's lock: others may be writing.
    """
    for ending in UNFINISHED:
        patterns = [f".{name}.{ending}", f"*/.{name}.{ending}"] if name == "*" else [f".{name}.*.{ending}"]
        for pattern in patterns:
            for path in folder.glob(pattern):
                with suppress(OSError):  # on another disk, say, that takes no more
                    remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class TemporaryFolder:
    """A locked temporary folder until it is closed; those of its prefix that killed processes left go."""

    def __init__(self, prefix: str) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            _remove_if_dead(left)
        while True:
            self._folder = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
            self.path = Path(self._folder.name)
            with suppress(FileNotFoundError):  # another process has swept it before it was held
                held = os.open(self.path, os.O_RDONLY)
                fcntl.flock(held, fcntl.LOCK_SH)
                if self.path.is_dir():
                    self._held: int | None = held
                    return
                os.close(held)

    def close(self) -> None:
        """Remove it; a second call does nothing."""
        self._folder.cleanup()
        held, self._held = self._held, None
        if held is not None:
            os.close(held)


def _remove_if_dead(folder: Path) -> None:
    """Remove a temporary folder of this user's that no process holds."""
    with suppress(OSError):  # another user's, or gone meanwhile
        descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        try:
            if os.fstat(descriptor).st_uid == os.getuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        finally:
            os.close(descriptor)
