"""The state that a deployed node keeps of its client, in its own folder.

    runs/RUN/now.safetensors     the client after the last message that it has answered
             before.safetensors  and before it

Each file names its client, run and federation, and has a digest of all its content. If an answer is lost, the
message comes again. The client answers it from the state before it, so nothing is trained twice.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedkd.errors import UserError
from fedkd.storage import Arrays, atomic_replacement, content_digest, sync_folder
from fedkd.tracking import remove_leftovers

RUNS = "runs"
NOW, BEFORE, LOCK = "now.safetensors", "before.safetensors", ".lock"
STEP, CLIENT, RUN, FEDERATION, DIGEST = "step", "client", "run", "federation", "digest"
"""Metadata of a file, and the SHA-256 of all of it."""


class NodeState:
    """The state of a node's client in one run of a federation, named by its digest."""

    def __init__(self, folder: Path, run: int, client: int, federation: str) -> None:
        self._folder = folder / RUNS / str(run)
        self._owner = {CLIENT: str(client), RUN: str(run), FEDERATION: federation}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the client's state for this process; raise `UserError` if the folder cannot be written."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = (self._folder / LOCK).open("w")
        except OSError as error:
            reason = f"cannot save the client's state here: {error.strerror}"
            raise UserError(reason, file=str(self._folder)) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            remove_leftovers(self._folder)  # a killed process leaves a private model
            yield

    def at(self, step: str) -> Arrays | None:
        """Return the state before the message `step`, new or repeated; None: the initial one.

        A damaged file, or another client's, raises `UserError`.
        """
        now = _read(self._folder / NOW, self._owner)
        if now is not None and now[0] != step:
            return now[1]
        before = _read(self._folder / BEFORE, self._owner)
        return None if before is None else before[1]

    def keep(self, step: str, state: Arrays) -> None:
        """Keep the client's state after the message `step`; raise `UserError` if it cannot be written."""
        now = self._folder / NOW
        try:
            if (found := _read(now, self._owner)) is not None and found[0] != step:
                os.replace(now, self._folder / BEFORE)
                sync_folder(self._folder)
            with atomic_replacement(now) as file:
                arrays = {name: np.asarray(values, order="C") for name, values in state.items()}
                said = {STEP: step, **self._owner}
                save_file(arrays, file, metadata={**said, DIGEST: content_digest(said, arrays)})
        except OSError as error:
            reason = f"cannot save the client's state: {error.strerror or error}"
            raise UserError(reason, file=str(now)) from error


def newest_state(folder: Path, client: int, federation: str) -> tuple[str, Arrays] | None:
    """Return the last message that a node's client answered in any run, and the state after it."""
    kept = sorted((folder / RUNS).glob(f"*/{NOW}"), key=lambda path: path.stat().st_mtime_ns)
    owner = {CLIENT: str(client), FEDERATION: federation}
    return _read(kept[-1], owner | {RUN: kept[-1].parent.name}) if kept else None


def _read(path: Path, owner: Mapping[str, str]) -> tuple[str, Arrays] | None:
    """Return a file's step and arrays, None without a file; raise `UserError` if they do not fit."""
    try:
        if not path.exists():
            return None
        with safe_open(path, framework="np") as file:
            said = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"cannot be read: {error}", file=str(path)) from error
    digest = said.pop(DIGEST, None)
    if digest is None:
        raise UserError(
            "has no digest: it is damaged, or from an earlier release of fedkd; use that release, or remove"
            " the folder to start again",
            file=str(path),
        )
    if digest != content_digest(said, arrays):
        raise UserError("is damaged: its contents differ from its checksum", file=str(path))
    for key, value in owner.items():
        if said.get(key) != value:
            raise UserError(f"belongs to another {key}: {said.get(key)}, not {value}", file=str(path))
    return said[STEP], arrays
