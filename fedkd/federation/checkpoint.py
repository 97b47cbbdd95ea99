"""Checkpoints: the whole state of a run after a round, on disk whole or not at all.

    checkpoints/round-00003/server.safetensors        what the server strategy carries
                            client-00004.safetensors  one per client that has a state
                            manifest.json             round, totals, offsets of the run's files, the scenario;
                                                      SHA-256 of every file here and of its own content

A checkpoint is written under another name and renamed when it is complete. Clients that did not change since
the last one are hard links to it. The last two are kept: should the newest be damaged, the one before it is
still there. What is not, to the bit, what was written is told of by name and not used. Nothing is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
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
from fedkd.tracking.totals import Totals

KEPT = 2
SERVER = "server.safetensors"
MANIFEST = "manifest.json"
_NAME = re.compile(r"round-(\d+)")

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


@dataclass(frozen=True)
class SavedClient:
    """What a checkpoint has of one client.

    Attributes:
        round: Last finished round.
        state: The client's state; None: it has taken no part, and is what it was at the beginning.
        server: Arrays of the server's strategy.
    """

    round: int
    state: Arrays | None
    server: Arrays


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
        self._previous: Path | None = None  # what unchanged clients are linked to
        self._digests: Mapping[str, str] = {}  # of its files

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint in the background.

        `checkpoint.clients` need hold only the clients that changed since the last one.

        Raises:
            OSError: The checkpoint before this one could not be written.
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
        """Return the newest complete checkpoint, or None if there is none."""
        for path in reversed(self._complete()):
            try:
                checkpoint, self._digests = _read(path)
            except _Damaged as damage:
                self._tell(f"checkpoint {path.name} is damaged and not used: {damage}")
                continue
            self._previous = path
            return checkpoint
        return None

    def began(self) -> tuple[Mapping[str, Any], int] | None:
        """Return what decided the results of the newest checkpoint whose manifest is whole, and its round."""
        for path in reversed(self._complete()):
            with suppress(_Damaged):
                manifest = _manifest(path)
                return manifest["scenario"], manifest["round"]
        return None

    def rounds(self) -> list[int]:
        """Return the rounds of which there is a checkpoint, in order."""
        return [_round(path) for path in self._complete()]

    def client(self, client: int, round: int) -> SavedClient:
        """Return what the checkpoint of a round has of a client, without reading all the others.

        Raises:
            UserError: The checkpoint is damaged.
        """
        path = self._folder / f"round-{round:05d}"
        name = _client_file(client)
        try:
            files = _manifest(path)["files"]
            state = _arrays(path / name, files[name]) if name in files else None
            return SavedClient(round, state, _arrays(path / SERVER, files[SERVER]))
        except _Damaged as damage:
            raise UserError(f"the checkpoint is damaged: {damage}", file=str(path)) from None

    def _complete(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        found = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=_round)

    def _write(self, checkpoint: Checkpoint) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        final = self._folder / f"round-{checkpoint.round:05d}"
        # Later than what the run goes on from is what a run left that was resumed from an earlier checkpoint
        # because the later ones are damaged, or that was killed while it wrote.
        done = _round(self._previous) if self._previous else 0
        for path in [*self._complete(), *self._folder.glob(".*.partial")]:
            if path.name.startswith(".") or _round(path) > done:
                shutil.rmtree(path)
        partial = self._folder / f".{final.name}.partial"
        try:
            partial.mkdir()
            digests = self._fill(partial, checkpoint)
            os.replace(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(self._folder)
        self._previous, self._digests = final, digests
        for path in self._complete()[:-KEPT]:
            shutil.rmtree(path)

    def _fill(self, partial: Path, checkpoint: Checkpoint) -> Mapping[str, str]:
        """Write all files of a checkpoint; return their digests."""
        digests = {SERVER: _write_arrays(partial / SERVER, checkpoint.server)}
        for client, arrays in checkpoint.clients.items():
            name = _client_file(client)
            digests[name] = _write_arrays(partial / name, arrays)
        if self._previous is not None:
            for name, digest in self._digests.items():
                if name not in digests:
                    _link(self._previous / name, partial / name)
                    digests[name] = digest
        manifest = {
            "round": checkpoint.round,
            "totals": asdict(checkpoint.totals),
            "offsets": dict(checkpoint.offsets),
            "digests": dict(checkpoint.digests),
            "offsets_if_longer": dict(checkpoint.offsets_if_longer),
            "digests_if_longer": dict(checkpoint.digests_if_longer),
            "scenario": dict(checkpoint.scenario),
            "files": dict(sorted(digests.items())),
        }
        manifest["digest"] = _digest_of(manifest)
        _write_bytes(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_folder(partial)
        return digests


def _round(path: Path) -> int:
    return int(path.name.removeprefix("round-"))


def _client_file(client: int) -> str:
    return f"client-{client:05d}.safetensors"


class _Damaged(Exception):
    """A checkpoint is not what was written; says what of it."""


def _read(path: Path) -> tuple[Checkpoint, Mapping[str, str]]:
    """Return the checkpoint in a folder, and the digests of its files.

    Raises:
        _Damaged: It is not what was written, to the bit.
    """
    manifest = _manifest(path)
    digests: dict[str, str] = manifest["files"]
    arrays = {name: _arrays(path / name, digest) for name, digest in digests.items()}
    checkpoint = Checkpoint(
        round=manifest["round"],
        totals=Totals(**manifest["totals"]),
        offsets=manifest["offsets"],
        digests=manifest["digests"],
        offsets_if_longer=manifest["offsets_if_longer"],
        digests_if_longer=manifest["digests_if_longer"],
        scenario=manifest["scenario"],
        server=arrays.pop(SERVER),
        clients={
            int(name.removeprefix("client-").removesuffix(".safetensors")): state
            for name, state in arrays.items()
        },
    )
    return checkpoint, digests


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


def _digest_of(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest's content, however it is laid out."""
    return _sha256(json.dumps(manifest, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_arrays(path: Path, arrays: Arrays) -> str:
    """Write a file of arrays; return its digest."""
    data = save({name: np.asarray(values, order="C") for name, values in arrays.items()})
    _write_bytes(path, data)
    return _sha256(data)


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
