"""Checkpoints: the whole state of a run after a round, written atomically.

    checkpoints/clients/client-00004@00002.safetensors  client 4 after round 2
                server/array-0123….safetensors          a server array that has waited for several rounds
                round-00003/server.safetensors          the server strategy's state
                            manifest.json               round, totals, offsets of the run's files, the
                                                        scenario; SHA-256 of every file and of its own content

A checkpoint writes the clients that have changed since the last one. Its folder has a temporary name until it
is complete. Its manifest names the file of every client's state. The last two checkpoints are kept, and the
files that they name. Arrays that wait on the server for many rounds are written twice: with their first
checkpoint, and by themselves. A damaged file is reported by name and ignored. No file is a pickle.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.errors import UserError
from fedkd.federation.manifest import (
    ARRAY,
    CLIENTS,
    MANIFEST,
    SERVER,
    SERVER_POOL,
    STATE,
    TABLES,
    Checkpoint,
    Manifest,
    digest_of,
    round_of,
)
from fedkd.storage import Arrays, DamagedFile, SavedFile, sync_file, sync_folder, write_arrays, write_bytes
from fedkd.tracking import remove_leftovers


@dataclass(frozen=True)
class SavedClient:
    """One client's part of a checkpoint; its state is None before its first round."""

    round: int
    state: Arrays | None
    server: Arrays


KEPT = 2
_NAME = re.compile(r"round-(\d+)")
_LASTING = re.compile(r"array-[0-9a-f]{64}\.safetensors")
LEAST_BYTES = 4096
"""Least size of a lasting array with a file of its own."""


class CheckpointStore:
    """Writes and reads a run's checkpoints, in a thread; `tell` receives a line about damaged ones."""

    def __init__(self, run_folder: Path, tell: Callable[[str], None] = lambda line: None) -> None:
        self._folder, self._tell = run_folder / "checkpoints", tell
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._previous: Path | None = None  # the last checkpoint
        self._states: dict[int, SavedFile] = {}  # clients' states in it
        self._added: dict[int, SavedFile] = {}  # written since
        self._lasting: dict[int, tuple[np.ndarray, SavedFile | None]] = {}  # arrays in it by their id
        self._spoken_of: dict[str, set[str]] = {}  # names of files in the two pools, by checkpoint

    def add(self, round: int, clients: Mapping[int, Arrays]) -> None:
        """Write some states ahead of their checkpoint, in the background; raise an earlier `OSError`."""
        self.wait()
        self._writing = self._writer.submit(self._add, round, clients)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint in the background, with changed clients; raise an earlier write's `OSError`."""
        self.wait()
        self._writing = self._writer.submit(self._write, checkpoint)

    def wait(self) -> None:
        """Return when everything is on disk; raise the `OSError` of a write that failed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def latest(self) -> Checkpoint | None:
        """Return the newest undamaged checkpoint, or None; clients' states are read on demand."""
        return self._newest(self._complete())

    def before(self, round: int) -> Checkpoint | None:
        """Return the newest undamaged checkpoint before a round, or None."""
        return self._newest([path for path in self._complete() if round_of(path) < round])

    def _newest(self, paths: Sequence[Path]) -> Checkpoint | None:
        for path in reversed(paths):
            try:
                manifest = Manifest(path)
                checkpoint = manifest.checkpoint()
            except DamagedFile as damage:
                self._tell(f"checkpoint {path.name} is damaged and ignored: {damage}")
                continue
            self._previous, self._states = path, manifest.clients
            kept = {name: (checkpoint.server[name], file) for name, file in manifest.lasting.items()}
            self._lasting = {id(array): (array, file) for array, file in kept.values()}
            return checkpoint
        return None

    def began(self) -> tuple[Mapping[str, Any], int] | None:
        """Return the decisive scenario and the round of the newest checkpoint with a whole manifest."""
        for path in reversed(self._complete()):
            with suppress(DamagedFile):
                found = Manifest(path).content
                return found["scenario"], found["round"]
        return None

    def rounds(self) -> list[int]:
        return [round_of(path) for path in self._complete()]

    def client(self, client: int, round: int) -> SavedClient:
        """Return one client's part of a round's checkpoint; raise `UserError` if that is damaged."""
        path = self._folder / f"round-{round:05d}"
        try:
            manifest = Manifest(path)
            file = manifest.clients.get(client)
            return SavedClient(round, None if file is None else file.read(), manifest.server())
        except DamagedFile as damage:
            raise UserError(f"the checkpoint is damaged: {damage}", file=str(path)) from None

    def _complete(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        found = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=round_of)

    def _write(self, checkpoint: Checkpoint) -> None:
        self._add(checkpoint.round, checkpoint.clients)
        final = self._folder / f"round-{checkpoint.round:05d}"
        partial, states = self._folder / f".{final.name}.partial", self._states | self._added
        try:
            lasting = self._write_lasting(checkpoint)
            partial.mkdir()
            own = {name: array for name, array in checkpoint.server.items() if name not in lasting}
            manifest = {
                "round": checkpoint.round,
                "totals": asdict(checkpoint.totals),
                **{name: dict(getattr(checkpoint, name)) for name in TABLES},
                "server": write_arrays(partial / SERVER, own).digest,
                "clients": {states[client].path.name: states[client].digest for client in sorted(states)},
                "lasting": {name: file.digest for name, file in lasting.items()},
            }
            manifest["digest"] = digest_of(manifest)
            write_bytes(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
            for pool, used in ((CLIENTS, states), (SERVER_POOL, lasting)):
                if used:
                    sync_folder(self._folder / pool)
            sync_folder(partial)
            os.replace(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(self._folder)
        self._previous, self._states, self._added = final, states, {}
        kept = {name: checkpoint.server[name] for name in checkpoint.lasting}
        self._lasting = {id(array): (array, lasting.get(name)) for name, array in kept.items()}
        self._spoken_of[final.name] = _names(states, lasting)
        for path in self._complete()[:-KEPT]:
            shutil.rmtree(path)
        self._sweep()

    def _add(self, round: int, clients: Mapping[int, Arrays]) -> None:
        pool = self._folder / CLIENTS
        if not self._added:
            pool.mkdir(parents=True, exist_ok=True)
            # Later checkpoints are damaged or incomplete: the run goes on from `_previous`.
            remove_leftovers(self._folder)
            for path in self._complete():
                if round_of(path) > (round_of(self._previous) if self._previous else 0):
                    shutil.rmtree(path)
        written = {client: pool / f"client-{client:05d}@{round:05d}.safetensors" for client in clients}
        for client, path in written.items():
            self._added[client] = write_arrays(path, clients[client], sync=False)
        # Last, as a file system may write its journal at once: the first sync then takes the others along.
        for path in written.values():
            sync_file(path)

    def _write_lasting(self, checkpoint: Checkpoint) -> dict[str, SavedFile]:
        """Write the server's arrays that were in the last checkpoint; return their files by name."""
        found = {}
        pool = self._folder / SERVER_POOL
        for name in sorted(checkpoint.lasting):
            array = checkpoint.server[name]
            known, file = self._lasting.get(id(array), (None, None))
            if known is not array or array.nbytes < LEAST_BYTES:
                continue
            if file is None:
                pool.mkdir(exist_ok=True)
                partial = pool / ".array.partial"
                written = write_arrays(partial, {ARRAY: array})
                file = SavedFile(pool / f"array-{written.digest}.safetensors", written.digest)
                os.replace(partial, file.path)
            found[name] = file
        return found

    def _sweep(self) -> None:
        kept = {path.name: path for path in self._complete()}
        known = {name: names for name, names in self._spoken_of.items() if name in kept}
        for name in kept.keys() - known.keys():
            known[name] = set()
            with suppress(DamagedFile):
                manifest = Manifest(kept[name])
                known[name] = _names(manifest.clients, manifest.lasting)
        self._spoken_of = known
        wanted = set().union(*known.values())
        for pool, pattern in ((CLIENTS, STATE), (SERVER_POOL, _LASTING)):
            with suppress(FileNotFoundError), os.scandir(self._folder / pool) as entries:
                for entry in entries:
                    if pattern.fullmatch(entry.name) and entry.name not in wanted:
                        os.unlink(entry.path)


def _names(states: Mapping[int, SavedFile], lasting: Mapping[str, SavedFile]) -> set[str]:
    return {file.path.name for file in (*states.values(), *lasting.values())}
