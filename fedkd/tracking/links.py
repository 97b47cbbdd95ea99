"""What clients sent each other in a round: `fusion/links-00003.npz` of the folder of a run without a server.

Arrays, one number a link; the same bytes in every repetition of a run:

    clients   [N]  who took part, ascending
    receiver  [L]  who heard
    sender    [L]  whom
    bytes     [L]  what went over the link
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from fedkd.tracking.atomic import write_bytes_atomically
from fedkd.tracking.neighbours import FUSION


@dataclass(frozen=True, eq=False)
class LinkTable:
    """What clients sent each other in a round.

    Attributes:
        round: 1-based.
        clients: The N clients that took part.
        heard: Who heard whom, receiver first, `[N, N]` bool; the diagonal is false.
        sizes: Bytes that went over each link, `[N, N]` int64.
    """

    round: int
    clients: tuple[int, ...]
    heard: np.ndarray
    sizes: np.ndarray


def write_links(
    folder: Path, round: int, clients: Sequence[int], heard: np.ndarray, sizes: np.ndarray
) -> None:
    """Write a round's links into a run folder.

    Args:
        folder: The run folder.
        round: 1-based.
        clients: Ascending, N of them.
        heard: Who heard whom, `[N, N]` bool.
        sizes: Bytes over each link, `[N, N]`.
    """
    names = np.array(clients)
    receiver, sender = np.nonzero(heard)
    content = BytesIO()
    np.savez(
        content,
        clients=names,
        receiver=names[receiver],
        sender=names[sender],
        bytes=sizes[receiver, sender].astype(np.int64),
    )
    (folder / FUSION).mkdir(exist_ok=True)
    write_bytes_atomically(_path(folder, round), content.getvalue())


def recorded_link_rounds(folder: Path) -> list[int]:
    """Return the rounds of which a run folder has links, ascending."""
    names = (
        re.fullmatch(r"links-(\d{5,})\.npz", path.name) for path in (folder / FUSION).glob("links-*.npz")
    )
    return sorted(int(name[1]) for name in names if name)


def read_links(folder: Path, round: int) -> LinkTable | None:
    """Return a round's links; None: there are none, or they cannot be read as such."""
    try:
        with np.load(_path(folder, round), allow_pickle=False) as file:
            names, receiver, sender, sizes = (
                file[name] for name in ("clients", "receiver", "sender", "bytes")
            )
        if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in (names, receiver, sender, sizes)):
            return None
        if not len(receiver) == len(sender) == len(sizes) or not np.isin([*receiver, *sender], names).all():
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    heard = np.zeros((len(names), len(names)), dtype=bool)
    table = np.zeros(heard.shape, dtype=np.int64)
    places = np.searchsorted(names, receiver), np.searchsorted(names, sender)
    heard[places], table[places] = True, sizes
    return LinkTable(round, tuple(map(int, names)), heard, table)


def _path(folder: Path, round: int) -> Path:
    return folder / FUSION / f"links-{round:05d}.npz"
