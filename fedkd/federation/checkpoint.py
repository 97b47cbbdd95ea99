"""Checkpoints: the whole state of a run after a round, on disk whole or not at all.

    checkpoints/clients/client-00004@00002.safetensors  what client 4 was after round 2
                round-00003/server.safetensors          what the server strategy carries
                            manifest.json               round, totals, offsets of the run's files, the
                                                        scenario; SHA-256 of every file and of its own content

A checkpoint writes the clients that have changed since the last one; then, under another name, its own
folder, which is renamed when it is complete. Its manifest says which file the state of every client is in,
and until it is there nobody looks for them. The last two are kept: should the newest be damaged, the one
before it is still there. Files that neither speaks of are removed. What is not, to the bit, what was written
is told of by name and not used. Nothing is a pickle.

A checkpoint of the layout before, whose folder holds every client as ``client-00004.safetensors``, is read
too, and gone on from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedkd.errors import UserError
from fedkd.json_text import NotJson, parse_json
from fedkd.tracking.atomic import sync_folder
from fedkd.tracking.recorder import file_digest
from fedkd.tracking.totals import Totals

KEPT = 2
SERVER = "server.safetensors"
MANIFEST = "manifest.json"
CLIENTS = "clients"
_NAME = re.compile(r"round-(\d+)")
_STATE = re.compile(r"client-(\d+)@\d+\.safetensors")
_OLD_STATE = re.compile(r"client-(\d+)\.safetensors")

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """The state after a round.

    Attributes:
        round: Last finished round.
        totals: Bytes and seconds spent up to here.
        offsets: Length of the run folder's tidy files at this point.
        digests: SHA-256 of each of them, up to there.
        offsets_if_longer: The offsets without an evaluation made only because the run was to end here.
        digests_if_longer: The digests that belong to them.
        scenario: What decided the run's results (see `fedkd.scenario.identity.decisive`).
        server: Arrays of the server's strategy.
        clients: State of every client that has one.
    """

    round: int
    totals: Totals
    offsets: Mapping[str, int]
    digests: Mapping[str, str]
    offsets_if_longer: Mapping[str, int]
    digests_if_longer: Mapping[str, str]
    scenario: Mapping[str, Any]
    server: Arrays
    clients: Mapping[int, Arrays]


class CheckpointStore:
    """Writes and reads the checkpoints of one run folder.

    Writing happens in a thread of its own, so that the next round need not wait for the disk.

    Args:
        run_folder: The run folder.
        tell: Told of a checkpoint that is passed over because it is damaged.
    """

    def __init__(self, run_folder: Path, tell: Callable[[str], None] = lambda line: None) -> None:
        self._folder = run_folder / "checkpoints"
        self._tell = tell
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._previous: Path | None = None  # what the next one leaves out, this one speaks of
        self._states: dict[int, _File] = {}  # of every client, as that one speaks of them
        self._spoken_of: dict[str, set[str]] = {}  # names of state files, by checkpoint
        self._added: dict[int, _File] = {}  # written since

    def add(self, round: int, clients: Mapping[int, Arrays]) -> None:
        """Write some clients' states in the background, ahead of the checkpoint that they belong to.

        So that no more of them need be in memory than are handed over at once.

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
        """Return when everything is on disk.

        Raises:
            OSError: It could not be written.
        """
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
                checkpoint, states = _read(path)
            except _Damaged as damage:
                self._tell(f"checkpoint {path.name} is damaged and not used: {damage}")
                continue
            self._previous, self._states = path, states
            return checkpoint
        return None

    def began(self) -> tuple[Mapping[str, Any], int] | None:
        """Return what decided the results of the newest checkpoint whose manifest is whole, and its round."""
        for path in reversed(self._complete()):
            with suppress(_Damaged):
                manifest = _manifest(path)
                return manifest["scenario"], manifest["round"]
        return None

    def _complete(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        found = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=_round)

    def _write(self, checkpoint: Checkpoint) -> None:
        self._add(checkpoint.round, checkpoint.clients)
        final = self._folder / f"round-{checkpoint.round:05d}"
        partial = self._folder / f".{final.name}.partial"
        states = self._states | self._added
        try:
            partial.mkdir()
            self._fill(partial, checkpoint, states)
            os.replace(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(self._folder)
        self._previous, self._states, self._added = final, states, {}
        for path in self._complete()[:-KEPT]:
            shutil.rmtree(path)
        self._sweep()

    def _add(self, round: int, clients: Mapping[int, Arrays]) -> None:
        """Write states that no checkpoint speaks of yet."""
        pool = self._folder / CLIENTS
        if not self._added:
            pool.mkdir(parents=True, exist_ok=True)
            self._clear()
            self._adopt(pool)
        written = {client: pool / f"client-{client:05d}@{round:05d}.safetensors" for client in clients}
        for client, path in written.items():
            self._added[client] = _File(path, _write_arrays(path, clients[client], sync=False))
        # Only now: the first takes all others along, where a file system writes its journal at once.
        for path in written.values():
            _sync(path)

    def _clear(self) -> None:
        """Remove what is later than what the run goes on from.

        A run left it that was resumed from an earlier checkpoint because the later ones are damaged, or that
        was killed while it wrote.
        """
        done = _round(self._previous) if self._previous else 0
        for path in [*self._complete(), *self._folder.glob(".*.partial")]:
            if path.name.startswith(".") or _round(path) > done:
                shutil.rmtree(path)

    def _adopt(self, pool: Path) -> None:
        """Take states over that lie in a checkpoint's own folder, as of old, which will be removed."""
        for client, file in self._states.items():
            if file.path.parent != pool:
                adopted = pool / f"client-{client:05d}@{_round(file.path.parent):05d}.safetensors"
                adopted.unlink(missing_ok=True)
                _link(file.path, adopted)
                self._states[client] = _File(adopted, file.digest)

    def _fill(self, partial: Path, checkpoint: Checkpoint, states: Mapping[int, _File]) -> None:
        """Write all files of a checkpoint but for the clients' states, which are there already."""
        manifest = {
            "round": checkpoint.round,
            "totals": asdict(checkpoint.totals),
            "offsets": dict(checkpoint.offsets),
            "digests": dict(checkpoint.digests),
            "offsets_if_longer": dict(checkpoint.offsets_if_longer),
            "digests_if_longer": dict(checkpoint.digests_if_longer),
            "scenario": dict(checkpoint.scenario),
            "files": {SERVER: _write_arrays(partial / SERVER, checkpoint.server)},
            "clients": {states[client].path.name: states[client].digest for client in sorted(states)},
        }
        manifest["digest"] = _digest_of(manifest)
        _write_bytes(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
        if states:
            sync_folder(self._folder / CLIENTS)
        sync_folder(partial)

    def _sweep(self) -> None:
        """Remove states that no checkpoint speaks of any more."""
        kept = {path.name: path for path in self._complete()}
        known = {name: names for name, names in self._spoken_of.items() if name in kept}
        assert self._previous is not None
        known[self._previous.name] = {file.path.name for file in self._states.values()}
        for name in kept.keys() - known.keys():
            try:
                known[name] = set(_manifest(kept[name]).get("clients", ()))
            except _Damaged:
                known[name] = set()
        self._spoken_of = known
        wanted = set().union(*known.values())
        with os.scandir(self._folder / CLIENTS) as entries:
            for entry in entries:
                if _STATE.fullmatch(entry.name) and entry.name not in wanted:
                    os.unlink(entry.path)


def _round(path: Path) -> int:
    return int(path.name.removeprefix("round-"))


@dataclass(frozen=True)
class _File:
    """A client's state on disk.

    Attributes:
        path: Where.
        digest: SHA-256 of what was written.
    """

    path: Path
    digest: str


class _SavedStates(Mapping[int, Arrays]):
    """Clients' states, each read when it is asked for."""

    def __init__(self, files: Mapping[int, _File]) -> None:
        self._files = files

    def __getitem__(self, client: int) -> Arrays:
        file = self._files[client]
        try:
            return _arrays(file.path, file.digest)
        except _Damaged as damage:  # it was whole a moment ago
            raise UserError(str(damage), file=str(file.path.parent)) from damage

    def __iter__(self) -> Iterator[int]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class _Damaged(Exception):
    """A checkpoint is not what was written; says what of it."""


def _read(path: Path) -> tuple[Checkpoint, dict[int, _File]]:
    """Return the checkpoint in a folder, and where the states of its clients are.

    Raises:
        _Damaged: It is not what was written, to the bit.
    """
    manifest = _manifest(path)
    states = _states(path, manifest)
    server = _arrays(path / SERVER, manifest["files"][SERVER])
    for file in states.values():
        _check(file)
    checkpoint = Checkpoint(
        round=manifest["round"],
        totals=Totals(**manifest["totals"]),
        offsets=manifest["offsets"],
        digests=manifest["digests"],
        offsets_if_longer=manifest["offsets_if_longer"],
        digests_if_longer=manifest["digests_if_longer"],
        scenario=manifest["scenario"],
        server=server,
        clients=_SavedStates(dict(states)),
    )
    return checkpoint, states


def _states(path: Path, manifest: Mapping[str, Any]) -> dict[int, _File]:
    """Return where the state of every client is that a manifest speaks of."""
    if "clients" in manifest:
        found, folder, pattern = manifest["clients"], path.parent / CLIENTS, _STATE
    else:
        found, folder, pattern = manifest["files"], path, _OLD_STATE
    matches = {name: pattern.fullmatch(name) for name in found}
    return {
        int(match[1]): _File(folder / name, found[name])
        for name, match in matches.items()
        if match is not None
    }


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = parse_json((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise _Damaged(f"{MANIFEST} is missing") from None
    except (OSError, NotJson):
        raise _Damaged(f"{MANIFEST} cannot be read") from None
    if not isinstance(manifest, dict) or manifest.pop("digest", None) != _digest_of(manifest):
        raise _Damaged(f"{MANIFEST} is not what was written")
    if manifest["round"] != _round(path):
        raise _Damaged(f"it is that of round {manifest['round']}")
    return manifest


def _arrays(path: Path, digest: str) -> Arrays:
    try:
        data = path.read_bytes()
        if _sha256(data) == digest:
            # A file keeps no order, and its reader's is another one every time.
            return dict(sorted(load(data).items()))
    except FileNotFoundError:
        raise _Damaged(f"{path.name} is missing") from None
    except (OSError, SafetensorError):
        raise _Damaged(f"{path.name} cannot be read") from None
    raise _Damaged(f"{path.name} is not what was written")


def _check(file: _File) -> None:
    """Look through a file.

    Raises:
        _Damaged: It is not what was written.
    """
    name = file.path.name
    try:
        found = file_digest(file.path)
    except FileNotFoundError:
        raise _Damaged(f"{name} is missing") from None
    except OSError:
        raise _Damaged(f"{name} cannot be read") from None
    if found != file.digest:
        raise _Damaged(f"{name} is not what was written")


def _digest_of(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest's content, however it is laid out."""
    return _sha256(json.dumps(manifest, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_arrays(path: Path, arrays: Arrays, *, sync: bool = True) -> str:
    """Write a file of arrays; return its digest."""
    data = save({name: np.asarray(values, order="C") for name, values in arrays.items()})
    _write_bytes(path, data, sync=sync)
    return _sha256(data)


def _write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
