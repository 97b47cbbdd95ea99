"""Which message an actor was at work on when it died.

A reply that is done may die with its actor before it is sent, so the first message without a reply need not
be the one that the actor died of. Each actor therefore notes the message that it begins, in a file of a few
bytes: that costs microseconds, where a message of its own to the driver would cost as much as a small
client's work.
"""

from __future__ import annotations

import os
from pathlib import Path

from fedkd.tracking.leftovers import TemporaryFolder

ID_BYTES = 32
"""Length of a message's id; see `fedkd.federation.identity.give_id`."""


class WorkNote:
    """An actor's end: says which message it works on.

    Args:
        path: The file that the driver made; on another node than the driver's there is none, and no note.
    """

    def __init__(self, path: str) -> None:
        try:
            self._file: int | None = os.open(path, os.O_WRONLY)
        except OSError:
            self._file = None

    def begin(self, message_id: str) -> None:
        """Note that the work on a message begins."""
        if self._file is not None:
            os.pwrite(self._file, message_id.encode().ljust(ID_BYTES)[:ID_BYTES], 0)


class WorkNotes:
    """The driver's end: one file for each actor. The next driver removes what a killed one leaves.

    Args:
        actors: Number of actors.
    """

    def __init__(self, actors: int) -> None:
        self._folder = TemporaryFolder("fedkd-actors-")
        self.paths = [str(self._folder.path / str(actor)) for actor in range(actors)]
        for actor in range(actors):
            self.clear(actor)

    def clear(self, actor: int) -> None:
        """Begin an actor's note anew."""
        Path(self.paths[actor]).write_bytes(bytes(ID_BYTES))  # room, so that no note finds the disk full

    def read(self, actor: int) -> str | None:
        """Return the id of the last message that an actor began, or None where there is no telling."""
        try:
            return Path(self.paths[actor]).read_bytes().strip(b"\0 ").decode() or None
        except (OSError, UnicodeDecodeError):  # gone, or what nobody wrote as a note
            return None

    def close(self) -> None:
        """Remove the files."""
        self._folder.close()
