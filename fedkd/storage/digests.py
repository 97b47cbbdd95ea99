"""Digests of tables of arrays, and array files that contain their digest."""

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.storage.atomic import write_bytes_atomically

DIGEST, RUN = "digest", "run"
"""Names of two extra arrays of a file: SHA-256 of its content, `[32]` uint8, and digest of its run."""
NO_RUN_DIGEST = 64 * "0"  # digest for tables without a run

Arrays = Mapping[str, np.ndarray]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(said: Mapping[str, str], arrays: Arrays) -> str:
    """Return the SHA-256 of a table of arrays and its text fields (64 hexadecimal digits)."""
    found = hashlib.sha256(json.dumps(dict(sorted(said.items()))).encode())
    for name in sorted(arrays):
        values = np.asarray(arrays[name], order="C")
        found.update(json.dumps([name, values.dtype.str, values.shape]).encode())
        found.update(values.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def write_table(path: Path, arrays: Arrays, run: str) -> None:
    """Write arrays as a ``.npz`` with digests of its run, name and content, deterministically."""
    told: dict[str, Any] = {**arrays, RUN: np.frombuffer(bytes.fromhex(run), np.uint8)}
    told[DIGEST] = np.frombuffer(bytes.fromhex(content_digest({"file": path.name}, told)), np.uint8)
    content = BytesIO()
    np.savez(content, **told)
    path.parent.mkdir(exist_ok=True)
    write_bytes_atomically(path, content.getvalue())


def read_table(path: Path, run: str | None = None) -> dict[str, np.ndarray] | None:
    """Return the arrays of a file; None if it is missing, damaged, or from another run."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        digest = arrays.pop(DIGEST, None)
        if digest is not None and digest.tobytes().hex() != content_digest({"file": path.name}, arrays):
            return None
        of_run = arrays.pop(RUN, None)
    except (OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile):
        return None
    except Exception as error:  # `zlib.error`, from a member that claims to be compressed
        if type(error).__name__ != "error":
            raise
        return None
    if run is not None and of_run is not None and of_run.tobytes().hex() != run:
        return None
    return arrays


def table_path(folder: Path, stem: str, round: int) -> Path:
    """Return the file of a round's table: `round-00003.npz` for the stem `round`."""
    return folder / f"{stem}-{round:05d}.npz"


def list_table_rounds(folder: Path, stem: str) -> list[int]:
    """Return the rounds that have a table, ascending."""
    names = (re.fullmatch(rf"{stem}-(\d{{5,}})\.npz", path.name) for path in folder.glob(f"{stem}-*.npz"))
    return sorted(int(name[1]) for name in names if name)
