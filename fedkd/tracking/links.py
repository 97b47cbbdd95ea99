"""What clients sent each other in a round: `fusion/links-00003.npz` of the folder of a run without a server.

Arrays, one number a link; the same bytes in every repetition of a run:

    clients   [N]  who took part, ascending
    receiver  [L]
    sender    [L]
    bytes     [L]  sent over the link
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedkd.storage import NO_RUN, read_table, table_path, write_table
from fedkd.tracking.neighbours import FUSION


@dataclass(frozen=True, eq=False)
class LinkTable:
    """Traffic between clients in a round."""

    round: int
    clients: tuple[int, ...]  # the N clients that took part
    heard: np.ndarray  # who heard whom, receiver first, [N, N] bool; the diagonal is false
    sizes: np.ndarray  # bytes that went over each link, [N, N] int64


def write_links(
    folder: Path,
    round: int,
    clients: Sequence[int],
    heard: np.ndarray,
    sizes: np.ndarray,
    *,
    run: str = NO_RUN,
) -> None:
    """Write a round's links (see `LinkTable`) into the folder of the run with this digest."""
    names, links = np.array(clients), np.nonzero(heard)
    receiver, sender = (names[places] for places in links)
    sent = sizes[links].astype(np.int64)
    arrays = {"clients": names, "receiver": receiver, "sender": sender, "bytes": sent}
    write_table(table_path(folder / FUSION, "links", round), arrays, run)


def read_links(folder: Path, round: int) -> LinkTable | None:
    """Return a round's links; None: there are none, or they cannot be read as such."""
    arrays = read_table(table_path(folder / FUSION, "links", round))
    if arrays is None:
        return None
    try:
        names, receiver, sender, sizes = (arrays[name] for name in ("clients", "receiver", "sender", "bytes"))
        if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in (names, receiver, sender, sizes)):
            return None
        if not len(receiver) == len(sender) == len(sizes) or not np.isin([*receiver, *sender], names).all():
            return None
    except (ValueError, KeyError, TypeError):
        return None
    heard = np.zeros((len(names), len(names)), dtype=bool)
    table = np.zeros(heard.shape, dtype=np.int64)
    places = np.searchsorted(names, receiver), np.searchsorted(names, sender)
    heard[places], table[places] = True, sizes
    return LinkTable(round, tuple(map(int, names)), heard, table)
