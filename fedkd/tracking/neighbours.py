"""Tables of a round about pairs of clients, receivers first, as `.npz` files of a run folder.

`fusion/round-00003.npz` says who learned how much from whom, and why:

    clients    [N]     whose knowledge was fused, ascending
    weights    [N, N]  how much each took from each
    distances  [N, N]  what decided about it, where that was a distance
    left_out   [N, N]  change of a receiver's targets without the sender, where it was computed

Above `MOST_WHOLE` clients each receiver keeps its `KEPT` greatest weights: tables are `[N, KEPT]`, and
`senders` `[N, KEPT]` names the client of each entry.

`fusion/links-00003.npz` says what clients sent each other in a run without a server, one number a link:

    clients   [N]  who took part, ascending
    receiver  [L]
    sender    [L]
    bytes     [L]  sent over the link

`transferability/round-00003.npz` says who would have gained from whom, and who was expected to, in float64:

    clients              [N]     who was measured, ascending, int64
    gain_local           [N, N]  change of accuracy on own test data, of a copy that learned from the sender
    gain_global          [N, N]  the same on the common test set
    predicted_NAME       [N, N]  what a predictor expected, in no unit; more is more
    complement_by_class  [N, N, C]  share of a class's transfer samples that the sender alone has right
    transfer_rate        [N, N]  share of these that the copy has right

The last two need labels of the transfer set. NaN: not defined.

All files have the same bytes in every repetition of a run; `fedkd.storage.digests` adds digests.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedkd.storage import NO_RUN_DIGEST, read_table, table_path, write_table

FUSION_STEM, TRANSFERABILITY_FOLDER = "fusion", "transferability"
MOST_WHOLE = 500  # clients up to which a round has whole tables: a megabyte each
KEPT = 64
PREDICTED = "predicted_"
WRONG = (ValueError, KeyError, TypeError)  # errors of a file that is missing, or is no such table


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
    run: str = NO_RUN_DIGEST,
) -> None:
    """Write a round's tables, `[N, N]` each, into the folder of the run with this digest."""
    known = _known(np.float32, {"weights": weights, "distances": distances, "left_out": left_out})
    names = np.array(clients)
    arrays: dict[str, Any] = {"clients": names, **known}
    if len(clients) > MOST_WHOLE:
        # Of equal weights those of the first clients: the choice must not depend on how a sort goes about it.
        places = np.argsort(-known["weights"], axis=1, kind="stable")[:, :KEPT]
        arrays = {name: np.take_along_axis(table, places, axis=1) for name, table in known.items()}
        arrays |= {"clients": names, "senders": names[places]}
    write_table(table_path(folder / FUSION_STEM, "round", round), arrays, run)


def read_neighbours(folder: Path, round: int) -> Neighbours | None:
    """Return a round's tables; None: there are none, or they cannot be read as such."""
    arrays = read_table(table_path(folder / FUSION_STEM, "round", round)) or {}
    with suppress(*WRONG):
        clients = tuple(map(int, arrays["clients"]))
        weights, senders = arrays["weights"], arrays.get("senders")
        tables = [weights, *(arrays[name] for name in ("distances", "left_out", "senders") if name in arrays)]
        shape = (len(clients), len(clients) if senders is None else weights.shape[-1])
        if all(table.shape == shape and table.dtype.kind in "fiu" for table in tables):
            told = arrays.get("distances"), arrays.get("left_out"), senders
            return Neighbours(round, clients, weights, *told)
    return None


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
    run: str = NO_RUN_DIGEST,
) -> None:
    """Write a round's links (see `LinkTable`) into the folder of the run with this digest."""
    names, links = np.array(clients), np.nonzero(heard)
    receiver, sender = (names[places] for places in links)
    sent = sizes[links].astype(np.int64)
    arrays = {"clients": names, "receiver": receiver, "sender": sender, "bytes": sent}
    write_table(table_path(folder / FUSION_STEM, "links", round), arrays, run)


def read_links(folder: Path, round: int) -> LinkTable | None:
    """Return a round's links; None: there are none, or they cannot be read as such."""
    arrays = read_table(table_path(folder / FUSION_STEM, "links", round)) or {}
    with suppress(*WRONG):
        names, *links = (arrays[name] for name in ("clients", "receiver", "sender", "bytes"))
        receiver, sender, sizes = links
        whole = all(array.ndim == 1 and array.dtype.kind in "iu" for array in (names, *links))
        alike = whole and len(receiver) == len(sender) == len(sizes)
        if alike and np.isin([*receiver, *sender], names).all():
            heard = np.zeros((len(names), len(names)), dtype=bool)
            table = np.zeros(heard.shape, dtype=np.int64)
            places = np.searchsorted(names, receiver), np.searchsorted(names, sender)
            heard[places], table[places] = True, sizes
            return LinkTable(round, tuple(map(int, names)), heard, table)
    return None


@dataclass(frozen=True, eq=False)
class TransferMap:
    """The transferability map of a round; tables are `[N, N]`, receivers first."""

    round: int
    clients: tuple[int, ...]  # the N clients that were measured
    gain_local: np.ndarray
    gain_global: np.ndarray
    predicted: Mapping[str, np.ndarray] = field(default_factory=dict)  # by predictor
    complement_by_class: np.ndarray | None = None  # [N, N, C]; None: labels are not known
    transfer_rate: np.ndarray | None = None  # None: labels are not known

    @property
    def gains(self) -> dict[Literal["local", "global"], np.ndarray]:
        """What was gained, by split."""
        return {"local": self.gain_local, "global": self.gain_global}


def write_transfer_map(folder: Path, found: TransferMap, run: str = NO_RUN_DIGEST) -> None:
    """Write a round's map into the folder of a run, whose scenario has the digest `run`."""
    tables: dict[str, Any] = {"gain_local": found.gain_local, "gain_global": found.gain_global}
    tables |= {f"{PREDICTED}{name}": table for name, table in found.predicted.items()}
    tables |= {"complement_by_class": found.complement_by_class, "transfer_rate": found.transfer_rate}
    arrays = {"clients": np.array(found.clients, dtype=np.int64), **_known(np.float64, tables)}
    write_table(table_path(folder / TRANSFERABILITY_FOLDER, "round", found.round), arrays, run)


def read_transfer_map(folder: Path, round: int) -> TransferMap | None:
    """Return a round's map; None: there is none, or it cannot be read as such."""
    arrays = read_table(table_path(folder / TRANSFERABILITY_FOLDER, "round", round)) or {}
    with suppress(*WRONG):
        clients = tuple(map(int, arrays.pop("clients")))
        if list(clients) != sorted(set(clients)) or min(clients, default=0) < 0:
            return None
        for name, table in arrays.items():
            shape = table.shape[:2] if name == "complement_by_class" else table.shape
            if table.dtype.kind != "f" or shape != (len(clients), len(clients)):
                return None
        gains = arrays["gain_local"], arrays["gain_global"]
        predicted = {
            name.removeprefix(PREDICTED): table
            for name, table in arrays.items()
            if name.startswith(PREDICTED)
        }
        rest = arrays.get("complement_by_class"), arrays.get("transfer_rate")
        return TransferMap(round, clients, *gains, predicted, *rest)
    return None


def _known(kind: type, tables: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
    """Return the tables that there are, as numbers of a kind."""
    return {name: table.astype(kind) for name, table in tables.items() if table is not None}
