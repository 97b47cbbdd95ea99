"""The manifest of a checkpoint: its figures, and its files with their digests."""

import json
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.storage import Arrays, DamagedFile, InvalidJson, SavedFile, SavedStates, parse_json, sha256
from fedkd.tracking import Totals

SERVER, MANIFEST = "server.safetensors", "manifest.json"
CLIENTS, SERVER_POOL = "clients", "server"
ARRAY = "array"
STATE = re.compile(r"client-(\d+)@\d+\.safetensors")
TABLES = ("offsets", "digests", "offsets_if_longer", "digests_if_longer", "scenario")
"""Fields of a checkpoint copied into its manifest."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after a round: the server's arrays, and every client's state.

    Attributes:
        offsets: Length of the run folder's tidy files; `digests` are their SHA-256.
        offsets_if_longer: The same without an evaluation made only because the run ends here.
        scenario: Keys that decide the results (see `fedkd.scenario.identity.result_relevant_keys`).
        lasting: Names of the server's arrays that never change, which later checkpoints may share.
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


class Manifest:
    """A checkpoint's manifest on disk; a file that does not match its digest raises `DamagedFile`.

    Attributes:
        clients: The file of every client's state, in the pool of clients.
        lasting: The server's arrays with files of their own, by name.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.content = path, _content(path)
        pools = path.parent / CLIENTS, path.parent / SERVER_POOL
        self.clients = {
            int(match[1]): SavedFile(pools[0] / name, digest)
            for name, digest in self.content["clients"].items()
            if (match := STATE.fullmatch(name))
        }
        self.lasting = {
            name: SavedFile(pools[1] / f"array-{digest}.safetensors", digest)
            for name, digest in self.content.get("lasting", {}).items()
        }

    def server(self) -> Arrays:
        """Return the server strategy's state, from both places."""
        server = dict(SavedFile(self._path / SERVER, self.content["server"]).read())
        server |= {name: file.read()[ARRAY] for name, file in self.lasting.items()}
        return dict(sorted(server.items()))

    def checkpoint(self) -> Checkpoint:
        """Check all files; return the checkpoint, with clients' states read on demand."""
        for file in self.clients.values():
            file.check()
        return Checkpoint(
            round=self.content["round"],
            totals=Totals(**self.content["totals"]),
            **{name: self.content[name] for name in TABLES},
            server=self.server(),
            clients=SavedStates(dict(self.clients)),
            lasting=self.lasting.keys(),
        )


def _content(path: Path) -> dict[str, Any]:
    try:
        manifest = parse_json((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise DamagedFile(f"{MANIFEST} is missing") from None
    except (OSError, InvalidJson):
        raise DamagedFile(f"{MANIFEST} cannot be read") from None
    if not isinstance(manifest, dict) or manifest.pop("digest", None) != digest_of(manifest):
        raise DamagedFile(f"{MANIFEST} is damaged")
    if "clients" not in manifest:
        raise DamagedFile("an earlier release of fedkd wrote it")
    if manifest["round"] != round_of(path):
        raise DamagedFile(f"it belongs to round {manifest['round']}")
    return manifest


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest's content, whatever its layout."""
    return sha256(json.dumps(manifest, sort_keys=True).encode())


def round_of(path: Path) -> int:
    return int(path.name.removeprefix("round-"))
