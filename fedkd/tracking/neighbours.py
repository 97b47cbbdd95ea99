"""Who learned how much from whom in a round, and why: `fusion/round-00003.npz` of a run folder.

Arrays, receivers first; the same bytes in every repetition of a run:

    clients    [N]     whose knowledge was fused, ascending
    weights    [N, N]  how much each took from each
    distances  [N, N]  what decided about it, where that was a distance
    left_out   [N, N]  change of a receiver's targets without the sender, where it was computed

`fedkd.storage.digests` adds digests. Above `MOST_WHOLE` clients each receiver keeps its `KEPT` greatest
weights: tables are `[N, KEPT]`, and `senders` `[N, KEPT]` names the client of each entry.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.storage import NO_RUN, read_table, table_path, write_table

FUSION = "fusion"
MOST_WHOLE = 500  # clients up to which a round has whole tables: a megabyte each
KEPT = 64


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Who learned from whom in a round; tables are `[N, N]`, or `[N, K]` with `senders`."""

    round: int
    clients: tuple[int, ...]  # the N clients whose knowledge was fused
    weights: np.ndarray
    distances: np.ndarray | None = None  # None: there were none
    left_out: np.ndarray | None = None  # None: not worked out
    senders: np.ndarray | None = None  # client of every column, by row; None: the columns are the clients


def write_neighbours(
    folder: Path,
    round: int,
    clients: Sequence[int],
    weights: np.ndarray,
    distances: np.ndarray | None = None,
    left_out: np.ndarray | None = None,
    *,
    run: str = NO_RUN,
) -> None:
    """Write a round's tables, `[N, N]` each, into the folder of the run with this digest."""
    tables = {"weights": weights, "distances": distances, "left_out": left_out}
    known = {name: table.astype(np.float32) for name, table in tables.items() if table is not None}
    names = np.array(clients)
    arrays: dict[str, Any] = {"clients": names, **known}
    if len(clients) > MOST_WHOLE:
        # Of equal weights those of the first clients: the choice must not depend on how a sort goes about it.
        places = np.argsort(-known["weights"], axis=1, kind="stable")[:, :KEPT]
        arrays = {name: np.take_along_axis(table, places, axis=1) for name, table in known.items()}
        arrays |= {"clients": names, "senders": names[places]}
    write_table(table_path(folder / FUSION, "round", round), arrays, run)


def read_neighbours(folder: Path, round: int) -> Neighbours | None:
    """Return a round's tables; None: there are none, or they cannot be read as such."""
    arrays = read_table(table_path(folder / FUSION, "round", round))
    if arrays is None:
        return None
    try:
        clients = tuple(map(int, arrays["clients"]))
        weights, senders = arrays["weights"], arrays.get("senders")
        tables = [weights, *(arrays[name] for name in ("distances", "left_out", "senders") if name in arrays)]
        columns = len(clients) if senders is None else weights.shape[-1]
        if any(table.shape != (len(clients), columns) or table.dtype.kind not in "fiu" for table in tables):
            return None
    except (ValueError, KeyError, TypeError):
        return None
    return Neighbours(round, clients, weights, arrays.get("distances"), arrays.get("left_out"), senders)
