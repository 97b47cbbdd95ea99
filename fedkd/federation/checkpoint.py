"""Checkpoints: the whole state of a run after a round, on disk whole or not at all.

    checkpoints/clients/client-00004@00002.safetensors  what client 4 was after round 2
                server/array-0123….safetensors          an array of the server's that has waited for long
                round-00003/server.safetensors          what the server strategy carries
                            manifest.json               round, totals, offsets of the run's files, the
                                                        scenario; SHA-256 of every file and of its own content

A checkpoint writes the clients that have changed since the last one. Then it writes its own folder under
another name and renames it when it is complete. Its manifest names the file of every client's state. The last
two are kept, in case the newest is damaged; files that neither names are removed. What the server keeps for
absent clients for many rounds is written twice: with the checkpoint that it is new in, and by itself.
A file that is not, to the bit, what was written is told of by name and not used. Nothing is a pickle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.errors import UserError
from fedkd.federation.saved_arrays import (
    Arrays,
    Damaged,
    SavedFile,
    sync_file,
    write_arrays,
    write_bytes,
)
from fedkd.federation.saved_checkpoint import (
    ARRAY,
    CLIENTS,
    MANIFEST,
    SERVER,
    SERVER_POOL,
    STATE,
    Checkpoint,
    SavedClient,
    client_files,
    digest_of,
    lasting_files,
    read_checkpoint,
    read_manifest,
    round_of,
    server_arrays,
)
from fedkd.tracking.atomic import sync_folder
from fedkd.tracking.leftovers import sweep

KEPT = 2
_NAME = re.compile(r"round-(\d+)")
_LASTING = re.compile(r"array-[0-9a-f]{64}\.safetensors")
LEAST_BYTES = 4096
"""Of an array of the server's that has a file of its own once it has lasted."""


class CheckpointStore:
    """Writes and reads the checkpoints of one run folder, in a thread of its own.

    Args:
        run_folder: Where.
        tell: Told of a checkpoint that is passed over because it is damaged.
    """

    def __init__(self, run_folder: Path, tell: Callable[[str], None] = lambda line: None) -> None:
        self._folder = run_folder / "checkpoints"
        self._tell = tell
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._previous: Path | None = None  # what the next one leaves out, this one speaks of
        self._states: dict[int, SavedFile] = {}  # of every client, as that one speaks of them
        self._added: dict[int, SavedFile] = {}  # written since
        self._lasting: dict[int, tuple[np.ndarray, SavedFile | None]] = {}  # arrays in it by their id
        self._spoken_of: dict[str, set[str]] = {}  # names of files in the two pools, by checkpoint

    def add(self, round: int, clients: Mapping[int, Arrays]) -> None:
        """Write some clients' states in the background, ahead of their checkpoint, to save memory.

        Raises:
            OSError: What was to be written before could not be.
        """
        self.wait()
        self._writing = self._writer.submit(self._add, round, clients)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint in the background.

        `checkpoint.clients` need hold only the clients that changed since the last one and were not added.

        Raises:
            OSError: What was to be written before could not be.
        """
        self.wait()
        self._writing = self._writer.submit(self._write, checkpoint)

    def wait(self) -> None:
        """Return when everything is on disk; raise the `OSError` if it could not be written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Finish writing and stop the thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def latest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None if there is none.

        All of it is looked through; clients' states are read when they are asked for.
        """
        for path in reversed(self._complete()):
            try:
                checkpoint, states, lasting = read_checkpoint(path)
            except Damaged as damage:
                self._tell(f"checkpoint {path.name} is damaged and not used: {damage}")
                continue
            self._previous, self._states = path, states
            arrays = {name: checkpoint.server[name] for name in lasting}
            self._lasting = {id(array): (array, lasting[name]) for name, array in arrays.items()}
            return checkpoint
        return None

    def began(self) -> tuple[Mapping[str, Any], int] | None:
        """Return what decided the results of the newest checkpoint whose manifest is whole, and its round."""
        for path in reversed(self._complete()):
            with suppress(Damaged):
                manifest = read_manifest(path)
                return manifest["scenario"], manifest["round"]
        return None

    def rounds(self) -> list[int]:
        """Return the rounds of which there is a checkpoint, in order."""
        return [round_of(path) for path in self._complete()]

    def client(self, client: int, round: int) -> SavedClient:
        """Return what the checkpoint of a round has of a client, without reading all the others.

        Raises:
            UserError: The checkpoint is damaged.
        """
        path = self._folder / f"round-{round:05d}"
        try:
            manifest = read_manifest(path)
            file = client_files(path, manifest).get(client)
            return SavedClient(round, None if file is None else file.read(), server_arrays(path, manifest))
        except Damaged as damage:
            raise UserError(f"the checkpoint is damaged: {damage}", file=str(path)) from None

    def _complete(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        found = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=round_of)

    def _write(self, checkpoint: Checkpoint) -> None:
        self._add(checkpoint.round, checkpoint.clients)
        final = self._folder / f"round-{checkpoint.round:05d}"
        partial = self._folder / f".{final.name}.partial"
        states = self._states | self._added
        try:
            lasting = self._write_lasting(checkpoint)
            partial.mkdir()
            self._fill(partial, checkpoint, states, lasting)
            os.replace(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(self._folder)
        self._previous, self._states, self._added = final, states, {}
        kept = {name: checkpoint.server[name] for name in checkpoint.lasting}
        self._lasting = {id(array): (array, lasting.get(name)) for name, array in kept.items()}
        self._spoken_of[final.name] = {file.path.name for file in [*states.values(), *lasting.values()]}
        for path in self._complete()[:-KEPT]:
            shutil.rmtree(path)
        self._sweep()

    def _add(self, round: int, clients: Mapping[int, Arrays]) -> None:
        """Write states that no checkpoint speaks of yet."""
        pool = self._folder / CLIENTS
        if not self._added:
            pool.mkdir(parents=True, exist_ok=True)
            self._clear()
        written = {client: pool / f"client-{client:05d}@{round:05d}.safetensors" for client in clients}
        for client, path in written.items():
            self._added[client] = write_arrays(path, clients[client], sync=False)
        # Only now: the first takes all others along, where a file system writes its journal at once.
        for path in written.values():
            sync_file(path)

    def _write_lasting(self, checkpoint: Checkpoint) -> dict[str, SavedFile]:
        """Write the server's arrays that were in the checkpoint before; return their files by name."""
        found = {}
        for name in sorted(checkpoint.lasting):
            array = checkpoint.server[name]
            known, file = self._lasting.get(id(array), (None, None))
            if known is not array or array.nbytes < LEAST_BYTES:
                continue
            found[name] = file or self._write_array(array)
        return found

    def _write_array(self, array: np.ndarray) -> SavedFile:
        pool = self._folder / SERVER_POOL
        pool.mkdir(exist_ok=True)
        partial = pool / ".array.partial"
        written = write_arrays(partial, {ARRAY: array})
        file = SavedFile(pool / f"array-{written.digest}.safetensors", written.digest)
        os.replace(partial, file.path)
        return file

    def _clear(self) -> None:
        """Remove what is later than what the run goes on from: damaged, or not written to the end."""
        done = round_of(self._previous) if self._previous else 0
        sweep(self._folder)
        for path in self._complete():
            if round_of(path) > done:
                shutil.rmtree(path)

    def _fill(
        self,
        partial: Path,
        checkpoint: Checkpoint,
        states: Mapping[int, SavedFile],
        lasting: Mapping[str, SavedFile],
    ) -> None:
        """Write all files of a checkpoint but for those that are there already."""
        own = {name: array for name, array in checkpoint.server.items() if name not in lasting}
        manifest = {
            "round": checkpoint.round,
            "totals": asdict(checkpoint.totals),
            "offsets": dict(checkpoint.offsets),
            "digests": dict(checkpoint.digests),
            "offsets_if_longer": dict(checkpoint.offsets_if_longer),
            "digests_if_longer": dict(checkpoint.digests_if_longer),
            "scenario": dict(checkpoint.scenario),
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

    def _sweep(self) -> None:
        """Remove states and arrays that no checkpoint speaks of any more."""
        kept = {path.name: path for path in self._complete()}
        known = {name: names for name, names in self._spoken_of.items() if name in kept}
        for name in kept.keys() - known.keys():
            known[name] = set()
            with suppress(Damaged):
                manifest = read_manifest(kept[name])
                files = [
                    *client_files(kept[name], manifest).values(),
                    *lasting_files(kept[name], manifest).values(),
                ]
                known[name] = {file.path.name for file in files}
        self._spoken_of = known
        wanted = set().union(*known.values())
        for pool, pattern in ((CLIENTS, STATE), (SERVER_POOL, _LASTING)):
            with suppress(FileNotFoundError), os.scandir(self._folder / pool) as entries:
                for entry in entries:
                    if pattern.fullmatch(entry.name) and entry.name not in wanted:
                        os.unlink(entry.path)
