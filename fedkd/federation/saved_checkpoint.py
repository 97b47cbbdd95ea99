"""What the folder of one checkpoint says (see `fedkd.federation.checkpoint` for where it lies)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.federation.saved_arrays import Arrays, Damaged, SavedFile, SavedStates, sha256
from fedkd.json_text import NotJson, parse_json
from fedkd.tracking.totals import Totals

SERVER = "server.safetensors"
MANIFEST = "manifest.json"
CLIENTS = "clients"
SERVER_POOL = "server"
ARRAY = "array"
STATE = re.compile(r"client-(\d+)@\d+\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The state after a round.

    Attributes:
        round: The last finished one.
        totals: Bytes and seconds spent up to here.
        offsets: Length of the run folder's tidy files at this point.
        digests: SHA-256 of each of them, up to there.
        offsets_if_longer: The offsets without an evaluation made only because the run was to end here.
        digests_if_longer: The digests that belong to them.
        scenario: What decided the run's results (see `fedkd.scenario.identity.decisive`).
        server: Arrays of the server's strategy.
        clients: State of every client that has one.
        lasting: Names of the server's arrays that nobody writes into: one that is the very array of the
            checkpoint before need not be written again.
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
    lasting: Set[str] = frozenset()


@dataclass(frozen=True)
class SavedClient:
    """What a checkpoint has of one client; its state is None if it has taken no part yet."""

    round: int
    state: Arrays | None
    server: Arrays


def round_of(path: Path) -> int:
    return int(path.name.removeprefix("round-"))


def read_checkpoint(path: Path) -> tuple[Checkpoint, dict[int, SavedFile], dict[str, SavedFile]]:
    """Return the checkpoint in a folder, and what lies outside of it: clients' states, the server's arrays.

    `Damaged` is raised, here and below, for what is not as it was written, to the bit.
    """
    manifest = read_manifest(path)
    states, lasting = client_files(path, manifest), lasting_files(path, manifest)
    for file in states.values():
        file.check()
    checkpoint = Checkpoint(
        round=manifest["round"],
        totals=Totals(**manifest["totals"]),
        offsets=manifest["offsets"],
        digests=manifest["digests"],
        offsets_if_longer=manifest["offsets_if_longer"],
        digests_if_longer=manifest["digests_if_longer"],
        scenario=manifest["scenario"],
        server=server_arrays(path, manifest),
        clients=SavedStates(dict(states)),
        lasting=lasting.keys(),
    )
    return checkpoint, states, lasting


def server_arrays(path: Path, manifest: Mapping[str, Any]) -> Arrays:
    """Return what the server strategy carries, wherever it lies."""
    server = dict(SavedFile(path / SERVER, manifest["server"]).read())
    for name, file in lasting_files(path, manifest).items():
        server[name] = file.read()[ARRAY]
    return dict(sorted(server.items()))


def client_files(path: Path, manifest: Mapping[str, Any]) -> dict[int, SavedFile]:
    """Return where the state of every client is that a manifest speaks of."""
    found = manifest["clients"]
    matches = {name: STATE.fullmatch(name) for name in found}
    pool = path.parent / CLIENTS
    return {int(match[1]): SavedFile(pool / name, found[name]) for name, match in matches.items() if match}


def lasting_files(path: Path, manifest: Mapping[str, Any]) -> dict[str, SavedFile]:
    """Return where those of the server's arrays are that have files of their own, by name."""
    pool = path.parent / SERVER_POOL
    return {
        name: SavedFile(pool / f"array-{digest}.safetensors", digest)
        for name, digest in manifest.get("lasting", {}).items()
    }


def read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = parse_json((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST} is missing") from None
    except (OSError, NotJson):
        raise Damaged(f"{MANIFEST} cannot be read") from None
    if not isinstance(manifest, dict) or manifest.pop("digest", None) != digest_of(manifest):
        raise Damaged(f"{MANIFEST} is not what was written")
    if "clients" not in manifest:
        raise Damaged("an earlier release of fedkd wrote it")
    if manifest["round"] != round_of(path):
        raise Damaged(f"it is that of round {manifest['round']}")
    return manifest


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest's content, however it is laid out."""
    return sha256(json.dumps(manifest, sort_keys=True).encode())
